"""Dependence between the nodes of a graph."""

from collections.abc import Callable, Iterable

from torch import fx

from soda_compile.ir.aten_operators import aten, packet

# What reads the sizes of a tensor but not its values does not depend on it.
SHAPE_ONLY = frozenset(
    {
        aten.zeros_like,
        aten.ones_like,
        aten.full_like,
        aten.empty_like,
        aten.rand_like,
        aten.randn_like,
        aten.new_zeros,
        aten.new_ones,
        aten.new_full,
        aten.new_empty,
    }
)


class Ancestry:
    """Answers in constant time whether one node of a graph depends on another.

    The ancestors of a node are the bits of one integer: 10,000 nodes take 12 MB, sets of nodes would take gigabytes.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.position = {node: index for index, node in enumerate(graph.nodes)}
        self._ancestors: dict[fx.Node, int] = {}
        for node in graph.nodes:
            bits = 0
            for source in () if packet(node) in SHAPE_ONLY else node.all_input_nodes:
                bits |= self._ancestors[source] | 1 << self.position[source]
            self._ancestors[node] = bits

    def depends(self, node: fx.Node, source: fx.Node) -> bool:
        """Return whether ``node`` is computed from ``source`` (a node does not depend on itself)."""
        return bool(self._ancestors[node] >> self.position[source] & 1)

    def depends_on_any(self, node: fx.Node, sources: Iterable[fx.Node]) -> bool:
        """Return whether ``node`` is computed from one of ``sources``."""
        bits = 0
        for source in sources:
            bits |= 1 << self.position[source]
        return bool(self._ancestors[node] & bits)


def ancestors_of(*nodes: fx.Node, inside: Callable[[fx.Node], bool] = lambda node: True) -> set[fx.Node]:
    """Return the nodes and all that they depend on, as far as every node on the way is ``inside``."""
    return _reached(nodes, lambda node: node.all_input_nodes, inside)


def descendants_of(*nodes: fx.Node) -> set[fx.Node]:
    """Return the nodes and all that depend on them."""
    return _reached(nodes, lambda node: node.users, lambda node: True)


def _reached(
    starts: Iterable[fx.Node],
    following: Callable[[fx.Node], Iterable[fx.Node]],
    inside: Callable[[fx.Node], bool],
) -> set[fx.Node]:
    found: set[fx.Node] = set()
    frontier = list(starts)
    while frontier:
        node = frontier.pop()
        if node not in found and inside(node):
            found.add(node)
            frontier.extend(following(node))
    return found
