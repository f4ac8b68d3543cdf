"""The contents of ``node.meta``: every key that the compiler writes or reads, in one place.

Keys of torch itself (``nn_module_stack``, ``example_value``, ``grapharg``) are read by the capture alone.
"""

from typing import Any, TypedDict, cast

from torch import fx

from soda_compile.ir.roles import Role


class Meta(TypedDict, total=False):
    """Values by key; which nodes have them, and from where on.

    Attributes:
        val: Fake tensor, several of them, or a number; on every node but the output, from the capture on.
        paths: Paths of the modules that the node was traced in, outermost first; from the capture on.
        classes: Class names of those modules.
        streams_of: Name of the cut whose token streams the node joins, on nodes that the analysis adds.
        role: What the runtime passes, on inputs that passes add.
        roles: Where the runtime puts results that passes add, in order; on the output.
        tokens: Tokens that the node takes, a ``selection.Tokens``; from ``prune_tokens`` to ``sink_gathers``.
        index_of: Samples, tokens and kept tokens that the node chooses for regions after its own.
        layout: Sizes and strides where they vary, in the graphs of a package.
        tells: Dynamic sizes that can be read from the node, in the graphs of a package.
    """

    val: Any
    paths: tuple[str, ...]
    classes: tuple[str, ...]
    streams_of: str
    role: Role
    roles: tuple[Role, ...]
    tokens: Any
    index_of: tuple[int, int, int]
    layout: tuple[tuple[Any, ...], tuple[Any, ...]]
    tells: dict[str, tuple[int, int, int]]


def meta_of(node: fx.Node) -> Meta:
    """Return ``node.meta`` with the types of its values."""
    return cast(Meta, node.meta)
