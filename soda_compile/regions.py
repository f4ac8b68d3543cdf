"""Finds the residual branches of a block graph, and for each the tensors to store. No names, no adapters.

In ``add(a, b)``, if ``a`` is an ancestor of ``b`` then ``a`` is the carry and ``b`` a branch of the residual stream:
``h + f(h)``. Branches that share heavy work (the streams of a joint attention) are one region.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from soda_compile.mincut import minimum_cut
from soda_compile.operators import (
    ATTENTION,
    CONVOLUTIONS,
    aten,
    flops,
    holds_tensor,
    is_heavy,
    looks_through,
    packet,
    takes_features,
    tensor_bytes,
    tensor_of,
)
from soda_compile.structure import Cut, Note, Region

RESIDUAL_ADDS = frozenset({aten.add.Tensor})


@dataclass(frozen=True, eq=False)
class _Residual:
    """One residual add: the branch, the operand it is added to, the carry that operand shows, the heavy work."""

    add: fx.Node
    branch: fx.Node
    operand: fx.Node
    carry: fx.Node
    heavy: tuple[fx.Node, ...]


def find_regions(graph: fx.Graph, block_path: str = "") -> tuple[tuple[Region, ...], tuple[Note, ...]]:
    """Finds all regions of a block graph.

    Args:
        graph: Functional ATen graph of one block.
        block_path: The block's path in the model, left out of region names.

    Returns:
        The regions in execution order, and for all heavy work outside them the reason why.
    """
    ancestors = _ancestors(graph)
    residuals = _find_residuals(graph, ancestors)
    groups = _group(residuals, {node: index for index, node in enumerate(graph.nodes)})
    cuts = [_cut(group, graph, ancestors) for group in groups]
    names = _unique([_name(group, block_path) for group in groups])
    regions = tuple(
        _describe(graph, ancestors, group, cut, name) for group, cut, name in zip(groups, cuts, names, strict=True)
    )
    return regions, tuple(_notes(graph, ancestors, residuals, cuts))


def _ancestors(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    found: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        found[node] = set(node.all_input_nodes).union(*(found[source] for source in node.all_input_nodes))
    return found


def _find_residuals(graph: fx.Graph, ancestors: dict[fx.Node, set[fx.Node]]) -> list[_Residual]:
    """Residual adds in graph order; each is a barrier for those after it."""
    found: dict[fx.Node, _Residual] = {}
    for node in graph.nodes:
        if node.target not in RESIDUAL_ADDS or not all(isinstance(value, fx.Node) for value in node.args[:2]):
            continue
        left, right = node.args[:2]
        for operand, branch in ((left, right), (right, left)):
            if residual := _match(node, operand, branch, ancestors, found):
                found[node] = residual
                break
    return list(found.values())


def _match(
    add: fx.Node,
    operand: fx.Node,
    branch: fx.Node,
    ancestors: dict[fx.Node, set[fx.Node]],
    found: dict[fx.Node, _Residual],
) -> _Residual | None:
    """The residual add with ``operand`` on the carry side, if it is one."""
    if tensor_of(operand).shape != tensor_of(add).shape:
        return None  # a shift or bias that is broadcast is no stream
    for carry in _shown(operand, found):
        if carry not in ancestors[branch]:
            continue
        heavy = tuple(_heavy_between(carry, branch, ancestors, found))
        return _Residual(add, branch, operand, carry, heavy) if heavy else None
    return None


def _shown(operand: fx.Node, found: dict[fx.Node, _Residual]) -> Iterator[fx.Node]:
    """The operand, what it is a cast, view or slice of, and the carries before earlier adds (parallel branches)."""
    node: fx.Node | None = operand
    while node is not None:
        yield node
        if node in found:
            node = found[node].operand
        elif looks_through(node) and node.all_input_nodes and not takes_features(node):
            node = node.all_input_nodes[0]
        else:
            node = None


def _heavy_between(
    carry: fx.Node, branch: fx.Node, ancestors: dict[fx.Node, set[fx.Node]], found: dict[fx.Node, _Residual]
) -> Iterator[fx.Node]:
    """Heavy nodes that depend on the carry and feed the branch without passing through another residual add."""
    seen: set[fx.Node] = set()
    frontier = [branch]
    while frontier:
        node = frontier.pop()
        if node in seen or node is carry or node in found:
            continue
        seen.add(node)
        if is_heavy(node) and carry in ancestors[node]:
            yield node
        frontier.extend(node.all_input_nodes)


def _group(residuals: Sequence[_Residual], position: dict[fx.Node, int]) -> list[list[_Residual]]:
    """Branches with common heavy work belong together: reusing all of them lets that work die."""
    groups: list[list[_Residual]] = []
    for residual in residuals:
        mine = set(residual.heavy)
        joined = [group for group in groups if any(mine & set(other.heavy) for other in group)]
        for group in joined:
            groups.remove(group)
        groups.append([*(member for group in joined for member in group), residual])
    return sorted(groups, key=lambda group: min(position[node] for residual in group for node in residual.heavy))


def _cut(group: Sequence[_Residual], graph: fx.Graph, ancestors: dict[fx.Node, set[fx.Node]]) -> list[fx.Node]:
    heavy = {node for residual in group for node in residual.heavy}
    branches = {residual.branch for residual in group}
    wanted = branches.union(*(ancestors[branch] for branch in branches))
    between = [node for node in graph.nodes if node in wanted and (node in heavy or heavy & ancestors[node])]
    return minimum_cut(heavy, branches, dict.fromkeys(between))


def _dying(graph: fx.Graph, cut: Sequence[fx.Node]) -> list[fx.Node]:
    """Nodes that nothing needs any more once the cut is given, in graph order."""
    given = set(cut)
    live: set[fx.Node] = set()
    frontier = [node for node in graph.nodes if node.op == "output"]
    while frontier:
        node = frontier.pop()
        if node in live or node in given:
            continue
        live.add(node)
        frontier.extend(node.all_input_nodes)
    return [node for node in graph.nodes if node not in live and node.op == "call_function" and _needed(node, given)]


def _needed(node: fx.Node, cut: set[fx.Node]) -> bool:
    """Whether the node is a cut or feeds one (and was not dead before)."""
    frontier, seen = [node], set()
    while frontier:
        current = frontier.pop()
        if current in cut:
            return True
        if current not in seen:
            seen.add(current)
            frontier.extend(current.users)
    return False


def _name(group: Sequence[_Residual], block_path: str) -> str:
    """The innermost module that holds all heavy work of the region, relative to the block."""
    stacks = [node.meta.get("paths", ()) for residual in group for node in residual.heavy]
    common = [path for path in (stacks[0] if stacks else ()) if all(path in stack for stack in stacks)]
    path: str = common[-1] if common else ""
    if not block_path:
        return path
    return path.removeprefix(block_path).strip(".") if path.startswith(block_path) else ""


def _unique(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return unique


def _describe(
    graph: fx.Graph,
    ancestors: dict[fx.Node, set[fx.Node]],
    group: Sequence[_Residual],
    cut: Sequence[fx.Node],
    name: str,
) -> Region:
    dying = _dying(graph, cut)
    carries = {residual.carry for residual in group}
    return Region(
        name=name,
        kind=_kind([node for node in dying if carries & ancestors[node]]),
        cuts=tuple(_describe_cut(node) for node in cut),
        branches=tuple(residual.branch.name for residual in group),
        carries=tuple(residual.operand.name for residual in group),
        flops=sum(flops(node) for node in dying),
        weights=tuple(
            tuple(tensor_of(source).shape)
            for node in dying
            if is_heavy(node)
            for source in node.all_input_nodes
            if source.op == "placeholder"
            and holds_tensor(source)
            and tensor_of(source).ndim >= 2
            and source.name.startswith("p_")
        ),
    )


def _describe_cut(node: fx.Node) -> Cut:
    tensor = tensor_of(node)
    return Cut(node.name, tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device, tensor_bytes(node))


def _kind(nodes: Sequence[fx.Node]) -> str:
    packets = {packet(node) for node in nodes}
    attends = bool(packets & (ATTENTION | {aten.softmax, aten._softmax, aten._safe_softmax}))
    if not attends:
        return "convolution" if packets & CONVOLUTIONS else "mlp"
    # An activation beside the attention means that an MLP runs in the same branch (single-stream blocks).
    activations = {aten.gelu, aten.silu, aten.relu}
    return "attention+mlp" if packets & activations else "attention"


def _notes(
    graph: fx.Graph,
    ancestors: dict[fx.Node, set[fx.Node]],
    residuals: Sequence[_Residual],
    cuts: Sequence[Sequence[fx.Node]],
) -> Iterator[Note]:
    """Why each heavy node outside all regions stays computed."""
    dying = {node for cut in cuts for node in _dying(graph, cut)}
    carries = {residual.carry for residual in residuals}
    for node in graph.nodes:
        if not is_heavy(node) or node in dying:
            continue
        paths = node.meta.get("paths", ())
        subject = f"{paths[-1] if paths else node.name} ({packet(node)}, {flops(node):.3g} FLOPs)"
        if not residuals:
            yield Note(subject, "no residual add follows it here")
        elif carries & ancestors[node]:
            yield Note(subject, "it is on the residual stream itself, or something outside the branch needs it too")
        else:
            yield Note(subject, "conditioning: it does not depend on the residual stream")


__all__ = ["find_regions"]
