"""Values that leave a residual branch beside its add: skip outputs, as in WaveNet.

One product gives what is added to the residual stream and what is added to the sum of skips. If the product is to be
avoidable, both are outputs of one region.
"""

from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass

from torch import fx

from soda_compile.analysis.residuals import RESIDUAL_ADDS, Residual
from soda_compile.ir.ancestry import SHAPE_ONLY, Ancestry, ancestors_of
from soda_compile.ir.aten_operators import aten, is_heavy, packet, tensor_of
from soda_compile.torch_internals.size_expressions import comparable

CONCATENATIONS = frozenset({aten.cat.default, aten.stack.default})


@dataclass(frozen=True, eq=False)
class SideOutput:
    """A value that leaves a branch.

    Attributes:
        value: The value.
        operand: What it is added to; where it leaves the graph or is concatenated, the residual stream of its branch.
    """

    value: fx.Node
    operand: fx.Node


@dataclass(frozen=True, eq=False)
class Sides:
    """What branches give beside their residual adds, and the heavy work on the way there."""

    outputs: tuple[SideOutput, ...] = ()
    heavy: tuple[fx.Node, ...] = ()


def side_outputs(
    group: Sequence[Residual], between: Collection[fx.Node], residuals: Sequence[Residual], ancestry: Ancestry
) -> Sides:
    """Follow what leaves the branches of one region.

    Args:
        group: The residual adds of the region.
        between: Its heavy work, and all nodes from there to its branches.
        residuals: All residual adds of the graph.
        ancestry: Of the graph.

    Returns:
        The values at which it joins another stream or leaves the graph; none where another branch reads it (the keys
        of a text that images attend to) or another residual stream starts from it, so that the work must stay.
    """
    own = {residual.add for residual in group}
    adds = {residual.add for residual in residuals}
    others = [residual.branch for residual in residuals if residual.add not in own]
    reached, heavy = set(between), []
    elsewhere: set[fx.Node] | None = None  # found where it is needed, which is seldom
    found: dict[fx.Node, SideOutput] = {}
    for node in ancestry.position:
        mine = [source for source in node.all_input_nodes if source in reached]
        if not mine or node in between or node in own or packet(node) in SHAPE_ONLY:
            continue
        if elsewhere is None:
            elsewhere = ancestors_of(*others, inside=lambda source: source not in adds)
        if node in adds or node in elsewhere:
            return Sides()
        stream = _joined_stream(node, reached)
        if stream is not None or node.op == "output":
            operand = stream if node.target in RESIDUAL_ADDS and stream is not None else group[0].operand
            found |= {value: SideOutput(value, operand) for value in mine if value not in found}
            continue
        reached.add(node)
        heavy += [node] if is_heavy(node) else []
    return Sides(tuple(found.values()), tuple(heavy))


def _joined_stream(node: fx.Node, reached: Container[fx.Node]) -> fx.Node | None:
    """Return an operand of another stream that the node adds or concatenates; a bias or a broadcast shift is none."""
    if node.target not in RESIDUAL_ADDS | CONCATENATIONS:
        return None
    for source in node.all_input_nodes:
        is_weight = source.op == "placeholder" and source.name.startswith("p_")
        alike = comparable(tensor_of(source).shape) == comparable(tensor_of(node).shape)
        is_whole = node.target in CONCATENATIONS or alike
        if source not in reached and not is_weight and is_whole:
            return source
    return None
