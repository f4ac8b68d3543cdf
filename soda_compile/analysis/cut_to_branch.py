"""The graph from a region's cuts to its branches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from soda_compile.ir.graphs import find_node
from soda_compile.ir.structure import Region

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class CutToBranch:
    """The graph from a region's cuts to its branches: gates, casts and views.

    Attributes:
        module: Takes the cuts, then the values of ``others``; gives the branches as a tuple.
        others: Nodes of the block graph that it reads beside the cuts, such as gates.
    """

    module: fx.GraphModule
    others: tuple[str, ...]


def cut_to_branch(graph: fx.Graph, region: Region) -> CutToBranch:
    """Extracts what stays computed between a region's cuts and the residual stream."""
    cuts = [find_node(graph, cut.node) for cut in region.cuts]
    branches = [find_node(graph, name) for name in region.branches]
    depends = set(cuts)
    for node in graph.nodes:
        if depends & set(node.all_input_nodes):
            depends.add(node)
    path: list[fx.Node] = []
    frontier = list(branches)
    while frontier:
        node = frontier.pop()
        if node in depends and node not in cuts and node not in path:
            path.append(node)
            frontier.extend(node.all_input_nodes)
    others = dict.fromkeys(
        source for node in graph.nodes if node in path for source in node.all_input_nodes if source not in depends
    )
    return CutToBranch(_extract(graph, [*cuts, *others], path, branches), tuple(node.name for node in others))


def _extract(graph: fx.Graph, inputs: list[fx.Node], path: list[fx.Node], results: list[fx.Node]) -> fx.GraphModule:
    head = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        copies[node] = head.placeholder(node.name)
        copies[node].meta = {"val": node.meta["val"]}
    for node in graph.nodes:
        if node in path:
            copies[node] = head.node_copy(node, lambda source: copies[source])
    head.output(tuple(copies[node] for node in results))
    return fx.GraphModule(torch.nn.Module(), head)
