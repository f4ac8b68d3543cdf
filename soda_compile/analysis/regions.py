"""Regions of a block graph: for the residual branches the tensors to store. No names, no adapters.

Branches that share heavy work (the token groups of a joint attention) are one region, and so are a branch and the skip
output that comes from the same work. Regions that would save no work are none.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from soda_compile.analysis.blocks import numbered
from soda_compile.analysis.data_sizes import refuse_data_sizes
from soda_compile.analysis.mincut import minimum_cut
from soda_compile.analysis.residuals import Residual, find_residuals, innermost_module
from soda_compile.analysis.side_outputs import Sides, side_outputs
from soda_compile.ir.ancestry import Ancestry, ancestors_of
from soda_compile.ir.aten_operators import (
    ATTENTION,
    CONVOLUTIONS,
    PRODUCTS,
    aten,
    flops,
    holds_tensor,
    is_collective,
    is_heavy,
    packet,
    tensor_of,
)
from soda_compile.ir.graphs import output_of
from soda_compile.ir.structure import Cut, Note, Region

Group = Sequence[Residual]


@dataclass(frozen=True, eq=False)
class _Part:
    """Residual adds with common work, what else that work gives, their cut, and the nodes that die by it."""

    group: Group
    sides: Sides
    cut: Sequence[fx.Node]
    dead: Sequence[fx.Node]


def find_regions(graph: fx.Graph, block_path: str = "") -> tuple[tuple[Region, ...], tuple[Note, ...]]:
    """Find all regions of a block graph.

    Args:
        graph: Functional ATen graph of one block.
        block_path: The block's path in the model, left out of region names.

    Returns:
        The regions in execution order, and for all heavy work outside them the reason why.
    """
    ancestry = Ancestry(graph)
    residuals = find_residuals(graph, ancestry)
    parts = [_separate(graph, group, residuals, ancestry) for group in _group(residuals, ancestry)]
    parts = [part for part in parts if any(map(is_heavy, part.dead))]
    names = numbered(_name(part.group, block_path, alone=len(parts) == 1) for part in parts)
    dying = [part.dead for part in parts]
    regions = tuple(
        _describe(ancestry, part, name, _own(part.dead, dying)) for part, name in zip(parts, names, strict=True)
    )
    return regions, tuple(_notes(graph, ancestry, residuals, set().union(*dying)))


def _group(residuals: Sequence[Residual], ancestry: Ancestry) -> list[list[Residual]]:
    """Join branches with common heavy work: reusing all of them lets that work die."""
    groups: list[list[Residual]] = []
    for residual in residuals:
        mine = set(residual.heavy)
        joined = [group for group in groups if any(mine & set(other.heavy) for other in group)]
        for group in joined:
            groups.remove(group)
        groups.append([*(member for group in joined for member in group), residual])
    return sorted(groups, key=lambda group: min(ancestry.position[residual.heavy[0]] for residual in group))


def _separate(graph: fx.Graph, group: Group, residuals: Sequence[Residual], ancestry: Ancestry) -> _Part:
    """Cut branches off, with all that leaves them on the way."""
    heavy = {node for residual in group for node in residual.heavy}
    branches = {residual.branch for residual in group}
    sides = side_outputs(group, _between(heavy, branches, ancestry), residuals, ancestry)
    heavy |= set(sides.heavy)
    branches |= {output.value for output in sides.outputs}
    # What a rank keeps it must have received, or reusing it would still need the other ranks.
    heavy |= {node for node in _between(heavy, branches, ancestry) if is_collective(node)}
    refuse_data_sizes(branches)
    cut = minimum_cut(heavy, branches, _between(heavy, branches, ancestry))
    return _Part(group, sides, cut, _dying(graph, cut))


def _between(heavy: Collection[fx.Node], branches: Collection[fx.Node], ancestry: Ancestry) -> dict[fx.Node, None]:
    """Return heavy work and all nodes from there to the branches, in graph order."""
    return dict.fromkeys(
        node
        for node in ancestry.position
        if (node in heavy or ancestry.depends_on_any(node, heavy))
        and (node in branches or any(ancestry.depends(branch, node) for branch in branches))
    )


def _dying(graph: fx.Graph, cut: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the nodes that only the cut needs, which is then an input, in graph order."""
    live = ancestors_of(output_of(graph), inside=lambda node: node not in cut)
    feeding = ancestors_of(*cut)
    return [node for node in graph.nodes if node in feeding and node not in live and node.op == "call_function"]


def _own(dead: Sequence[fx.Node], dying: Sequence[Sequence[fx.Node]]) -> list[fx.Node]:
    """Return the dead nodes that no smaller region lets die as well; so the work of all regions can be added up."""
    inner = set().union(*(other for other in dying if len(other) < len(dead)))
    return [node for node in dead if node not in inner]


def _name(group: Group, block_path: str, *, alone: bool) -> str:
    """Return the innermost module that holds all heavy work of the region, relative to the block.

    Where that is the block itself and there are other regions, the part of the block that does the last heavy work.
    """
    heavy = [node for residual in group for node in residual.heavy]
    name = _relative(innermost_module(heavy), block_path)
    if name or alone:
        return name
    last = max(heavy, key=lambda node: len(node.meta.get("paths", ())) and heavy.index(node))
    return _relative(innermost_module([last]), block_path).partition(".")[0]


def _relative(path: str, block_path: str) -> str:
    if not block_path:
        return path
    return path.removeprefix(block_path).strip(".") if path.startswith(block_path) else ""


def _describe(ancestry: Ancestry, part: _Part, name: str, own: Sequence[fx.Node]) -> Region:
    carries = {residual.carry for residual in part.group}
    pairs = [(residual.branch, residual.operand) for residual in part.group]
    pairs += [(output.value, output.operand) for output in part.sides.outputs]
    return Region(
        name=name,
        kind=_kind([node for node in own if ancestry.depends_on_any(node, carries)], carries, ancestry),
        cuts=tuple(Cut.like(node.name, tensor_of(node)) for node in part.cut),
        branches=tuple(branch.name for branch, _ in pairs),
        carries=tuple(operand.name for _, operand in pairs),
        flops=sum(flops(node) for node in own),
        weights=tuple(
            tuple(tensor_of(source).shape)
            for node in part.dead
            if is_heavy(node)
            for source in node.all_input_nodes
            if source.op == "placeholder"
            and holds_tensor(source)
            and tensor_of(source).ndim >= 2
            and source.name.startswith("p_")
        ),
    )


def _kind(nodes: Sequence[fx.Node], carries: set[fx.Node], ancestry: Ancestry) -> str:
    packets = {packet(node) for node in nodes}
    if not (packets & SOFTMAX or any(_multiplies_activations(node) for node in nodes)):
        return "convolution" if packets & CONVOLUTIONS else "mlp"
    # An activation beside the attention means that an MLP runs in the same branch (single-stream blocks).
    return "attention+mlp" if packets & ACTIVATIONS else "attention"


def _multiplies_activations(node: fx.Node) -> bool:
    """Return whether the node attends or multiplies two computed matrices, as linear attention does."""
    if packet(node) in ATTENTION:
        return True
    return packet(node) in PRODUCTS and sum(source.op != "placeholder" for source in node.all_input_nodes) > 1


def _notes(graph: fx.Graph, ancestry: Ancestry, residuals: Sequence[Residual], dying: set[fx.Node]) -> Iterator[Note]:
    """Give the reason why each heavy node outside all regions stays computed."""
    carries = {residual.carry for residual in residuals}
    for node in graph.nodes:
        if not is_heavy(node) or node in dying:
            continue
        paths = node.meta.get("paths", ())
        subject = f"{paths[-1] if paths else node.name} ({packet(node)}, {flops(node):.3g} FLOPs)"
        if not residuals:
            yield Note(subject, "no residual add follows it here")
        elif ancestry.depends_on_any(node, carries):
            yield Note(subject, "it is on the residual stream itself, or something outside the branch needs it too")
        else:
            yield Note(subject, "conditioning: it does not depend on the residual stream")


SOFTMAX = frozenset({aten.softmax, aten._softmax, aten._safe_softmax})
ACTIVATIONS = frozenset({aten.gelu, aten.silu, aten.relu})

__all__ = ["find_regions"]
