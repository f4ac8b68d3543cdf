"""The graph from a region's cuts to its branches."""

from dataclasses import dataclass

from torch import fx

from soda_compile.ir.ancestry import ancestors_of, descendants_of
from soda_compile.ir.graphs import extract, find_node
from soda_compile.ir.structure import Region


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
    """Extract what stays computed between a region's cuts and the residual stream."""
    cuts = [find_node(graph, cut.node) for cut in region.cuts]
    branches = [find_node(graph, name) for name in region.branches]
    dependent = descendants_of(*cuts)
    between = ancestors_of(*branches, inside=lambda node: node in dependent and node not in cuts)
    path = [node for node in graph.nodes if node in between]
    others = dict.fromkeys(source for node in path for source in node.all_input_nodes if source not in dependent)
    return CutToBranch(extract([*cuts, *others], path, branches), tuple(node.name for node in others))
