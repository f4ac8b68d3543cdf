"""Removes what nothing needs, inputs included."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from soda_compile.passes.base import PassResult


@dataclass(frozen=True)
class DeadCode:
    """Erases nodes without users, and then placeholders without users.

    Before::

        %w, %slot = placeholder
        %y   = linear(%x, %w)         # no user
        %out = add(%h, %slot)

    After::

        %slot = placeholder
        %out  = add(%h, %slot)

    Valid because the graph is functional but for ``copy_`` into slots, which counts as used.
    """

    name: str = "dead_code"

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrites ``graph`` in place."""
        before = [node.name for node in graph.nodes]
        graph.eliminate_dead_code()
        for node in list(graph.nodes):
            if node.op == "placeholder" and not node.users:
                graph.erase_node(node)
        after = {node.name for node in graph.nodes}
        return PassResult(changed=tuple(name for name in before if name not in after))
