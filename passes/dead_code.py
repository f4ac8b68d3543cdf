"""Removes what nothing needs, inputs included."""

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from soda_compile.passes.base import Pass, PassResult


@dataclass(frozen=True)
class DeadCode(Pass):
    """Erases nodes without users, and then placeholders without users.

    Before::

        %w, %slot = placeholder
        %y   = linear(%x, %w)         # no user
        %out = add(%h, %slot)

    After::

        %slot = placeholder
        %out  = add(%h, %slot)

    Valid because the graph is functional but for ``copy_`` into slots, which counts as used. Operators that could
    draw random numbers (attention with dropout) are erased like the others; fx alone would keep them.
    """

    name: ClassVar[str] = "dead_code"

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrite ``graph`` in place."""
        before = [node.name for node in graph.nodes]
        graph.eliminate_dead_code(_has_effect)
        for node in list(graph.nodes):
            if node.op == "placeholder" and not node.users:
                graph.erase_node(node)
        after = {node.name for node in graph.nodes}
        return PassResult(changed=tuple(name for name in before if name not in after))


def _has_effect(node: fx.Node) -> bool:
    """Return whether the node counts without users: it is an input, the output, or writes to one of its arguments."""
    if node.op != "call_function":
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)
