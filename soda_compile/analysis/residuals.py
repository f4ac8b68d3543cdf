"""Residual adds of a graph, found by dominance, not by names.

In ``add(a, b)``, if ``a`` is an ancestor of ``b`` then ``a`` is the carry and ``b`` a branch: ``h + f(h)``. It is
worth caching if there is heavy work between the carry ``h`` and the branch ``f(h)``.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from soda_compile.ir.ancestry import Ancestry, ancestors_of
from soda_compile.ir.aten_operators import aten, is_heavy, looks_through, takes_features, tensor_of
from soda_compile.torch_internals.size_expressions import comparable

RESIDUAL_ADDS = frozenset({aten.add.Tensor})


@dataclass(frozen=True, eq=False)
class Residual:
    """One residual add.

    Attributes:
        add: The add.
        branch: The operand that is computed from the carry.
        operand: The operand that it is added to.
        carry: The residual stream behind the operand: itself, or what it is a cast, view or slice of, or the stream
            before a parallel branch.
        heavy: The heavy work between carry and branch.
    """

    add: fx.Node
    branch: fx.Node
    operand: fx.Node
    carry: fx.Node
    heavy: tuple[fx.Node, ...]


def find_residuals(graph: fx.Graph, ancestry: Ancestry) -> list[Residual]:
    """Return the residual adds with heavy work in their branch, in graph order.

    A residual inside a module that is itself one branch (the temporal convolution inside a feed-forward) is part of
    that branch, not a residual of its own.
    """
    found: dict[fx.Node, Residual] = {}
    for node in graph.nodes:
        if node.target not in RESIDUAL_ADDS or not all(isinstance(value, fx.Node) for value in node.args[:2]):
            continue
        left, right = node.args[:2]
        for operand, branch in ((left, right), (right, left)):
            if residual := _match(node, operand, branch, ancestry, found):
                found[node] = residual
                break
    return list(found.values())


def innermost_module(nodes: Iterable[fx.Node]) -> str:
    """Return the path of the innermost module that holds all the nodes; empty for the whole graph."""
    stacks = [node.meta.get("paths", ()) for node in nodes]
    common = [path for path in (stacks[0] if stacks else ()) if all(path in stack for stack in stacks)]
    return common[-1] if common else ""


def _match(
    add: fx.Node, operand: fx.Node, branch: fx.Node, ancestry: Ancestry, found: dict[fx.Node, Residual]
) -> Residual | None:
    """Return the residual add with ``operand`` on the carry side, if it is one; ``found`` loses what it swallows."""
    if comparable(tensor_of(operand).shape) != comparable(tensor_of(add).shape):
        return None  # a shift or bias that is broadcast is no stream
    for carry in _streams_behind(operand, found):
        if not ancestry.depends(branch, carry):
            continue
        heavy, swallowed = _branch_work(add, carry, branch, ancestry, found)
        for inner in swallowed:
            del found[inner]
        return Residual(add, branch, operand, carry, heavy) if heavy else None
    return None


def _streams_behind(operand: fx.Node, found: dict[fx.Node, Residual]) -> Iterator[fx.Node]:
    """Yield the operand, what it is a cast, view or slice of, and the carries before parallel branches."""
    node: fx.Node | None = operand
    while node is not None:
        yield node
        if node in found:
            node = found[node].operand
        elif looks_through(node) and node.all_input_nodes and not takes_features(node):
            node = node.all_input_nodes[0]
        else:
            node = None


def _branch_work(
    add: fx.Node, carry: fx.Node, branch: fx.Node, ancestry: Ancestry, found: dict[fx.Node, Residual]
) -> tuple[tuple[fx.Node, ...], list[fx.Node]]:
    """Return the heavy work of a branch, and the residual adds inside it that are no residuals of their own.

    Other residual adds are barriers: what lies behind them belongs to them. The exception are adds on a stream of
    their own inside a module that holds all the work of this branch.
    """
    near = _between(carry, branch, ancestry, found)
    if any(source in found for node in (*near, branch) for source in (node, *node.all_input_nodes)):
        same_stream = {node for node in found if carry in _streams_behind(node, found)}
        through = _between(carry, branch, ancestry, same_stream)
        heavy = _heavy(through, ancestry)
        inner = [node for node in through if node in found]
        if heavy and _is_private(innermost_module(heavy), add, [found[node].carry for node in inner]):
            return heavy, inner
    return _heavy(near, ancestry), []


def _is_private(module: str, add: fx.Node, carries: Sequence[fx.Node]) -> bool:
    """Return whether a module is called where the add is, and starts the streams of the carries itself."""
    scope = innermost_module([add])
    return (
        module not in ("", scope)
        and module.startswith(f"{scope}." if scope else "")
        and all(module in carry.meta.get("paths", ()) for carry in carries)
    )


def _between(carry: fx.Node, branch: fx.Node, ancestry: Ancestry, barriers: Container[fx.Node]) -> set[fx.Node]:
    """Return the nodes that depend on the carry and lead to the branch without passing through a barrier."""
    return ancestors_of(branch, inside=lambda node: node not in barriers and ancestry.depends(node, carry))


def _heavy(nodes: Iterable[fx.Node], ancestry: Ancestry) -> tuple[fx.Node, ...]:
    return tuple(sorted((node for node in nodes if is_heavy(node)), key=ancestry.position.__getitem__))
