"""Regions of a block graph: for the residual branches the tensors to store. No names, no adapters.

Branches that share heavy work (the token groups of a joint attention) are one region.
"""

from collections.abc import Iterator, Sequence

from torch import fx

from soda_compile.analysis.blocks import numbered
from soda_compile.analysis.data_sizes import refuse_data_sizes
from soda_compile.analysis.mincut import minimum_cut
from soda_compile.analysis.residuals import Residual, find_residuals, innermost_module
from soda_compile.ir.ancestry import Ancestry, ancestors_of
from soda_compile.ir.aten_operators import (
    ATTENTION,
    CONVOLUTIONS,
    PRODUCTS,
    aten,
    flops,
    holds_tensor,
    is_heavy,
    packet,
    tensor_of,
)
from soda_compile.ir.graphs import output_of
from soda_compile.ir.structure import Cut, Note, Region

Group = Sequence[Residual]


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
    groups = _group(residuals, ancestry)
    cuts = [_cut(group, ancestry) for group in groups]
    dying = [_dying(graph, cut) for cut in cuts]
    names = numbered(_name(group, block_path, alone=len(groups) == 1) for group in groups)
    regions = tuple(
        _describe(ancestry, group, cut, name, dead, _own(dead, dying))
        for group, cut, name, dead in zip(groups, cuts, names, dying, strict=True)
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


def _cut(group: Group, ancestry: Ancestry) -> list[fx.Node]:
    heavy = {node for residual in group for node in residual.heavy}
    branches = {residual.branch for residual in group}
    refuse_data_sizes(branches)
    between = [
        node
        for node in ancestry.position
        if (node in heavy or ancestry.depends_on_any(node, heavy))
        and (node in branches or any(ancestry.depends(branch, node) for branch in branches))
    ]
    return minimum_cut(heavy, branches, dict.fromkeys(between))


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


def _describe(
    ancestry: Ancestry, group: Group, cut: Sequence[fx.Node], name: str, dead: Sequence[fx.Node], own: Sequence[fx.Node]
) -> Region:
    carries = {residual.carry for residual in group}
    return Region(
        name=name,
        kind=_kind([node for node in own if ancestry.depends_on_any(node, carries)], carries, ancestry),
        cuts=tuple(Cut.like(node.name, tensor_of(node)) for node in cut),
        branches=tuple(residual.branch.name for residual in group),
        carries=tuple(residual.operand.name for residual in group),
        flops=sum(flops(node) for node in own),
        weights=tuple(
            tuple(tensor_of(source).shape)
            for node in dead
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
