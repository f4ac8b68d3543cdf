"""Makes a block graph also return what sensitivity is measured on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from soda_compile.passes.base import PassResult, add_call, find_node, output_of, results_of
from soda_compile.structure import Region
from soda_compile.token_axes import carries_of

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class ResidualHead:
    """The graph from a region's cuts to its branches: gates, casts and views.

    Attributes:
        module: Takes the cuts, then the values of ``others``; gives the branches as a tuple.
        others: Nodes of the block graph that it reads beside the cuts, such as gates.
    """

    module: fx.GraphModule
    others: tuple[str, ...]


def residual_head(graph: fx.Graph, region: Region) -> ResidualHead:
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
    return ResidualHead(_extract(graph, [*cuts, *others], path, branches), tuple(node.name for node in others))


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


@dataclass(frozen=True)
class Observe:
    """Returns the cuts of every region, what its residual head reads, and the size of its carries.

    With ``carries`` also the carry of each cut, where the region can be pruned.

    Before::

        %y   : [B, N, D] = linear(%attention, %w)
        %out : [B, N, D] = add(%h, mul(%gate, %y))
        return (%out,)

    After::

        %size : float32 [B] = sum(%h * %h, (1, 2))
        return (%out, %y, %gate, %size)

    Valid for every graph: it only adds outputs. The result's ``changed`` names them in order, without repetition:
    cuts, what the heads read and carries by their node names, sizes as ``|carry|``.
    """

    regions: tuple[Region, ...]
    carries: bool = False
    name: str = "observe"

    def apply(self, graph: fx.Graph) -> PassResult:
        """Adds the outputs to ``graph``."""
        wanted: dict[str, fx.Node] = {}
        for region in self.regions:
            head = residual_head(graph, region)
            for name in (*(cut.node for cut in region.cuts), *head.others):
                wanted[name] = find_node(graph, name)
            if self.carries:
                wanted |= {node.name: node for node in carries_of(graph, region) or ()}
            for carry in region.carries:
                if f"|{carry}|" not in wanted:
                    wanted[f"|{carry}|"] = _squared_size(graph, find_node(graph, carry))
        output_of(graph).args = ((*results_of(graph), *wanted.values()),)
        return PassResult(changed=tuple(wanted))


def _squared_size(graph: fx.Graph, carry: fx.Node) -> fx.Node:
    """Sum of squares of each row, float32."""
    axes = list(range(1, carry.meta["val"].ndim))
    with graph.inserting_before(output_of(graph)):
        wide = add_call(graph, aten._to_copy.default, carry, dtype=torch.float32)
        square = add_call(graph, aten.mul.Tensor, wide, wide)
        return add_call(graph, aten.sum.dim_IntList, square, axes)
