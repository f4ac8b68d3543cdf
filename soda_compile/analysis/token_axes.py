"""Token axes of a region's values, and the residual streams that the tokens of cuts belong to."""

import operator
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from torch import fx

from soda_compile.analysis.sample_axes import region_samples
from soda_compile.ir.ancestry import ancestors_of, descendants_of
from soda_compile.ir.aten_operators import CONVOLUTIONS, aten, holds_tensor, packet, tensor_of
from soda_compile.ir.graphs import add_call, find_node
from soda_compile.ir.structure import Region, Structure
from soda_compile.plans.actions import Action
from soda_compile.torch_internals.size_expressions import comparable, slice_bounds, with_values

_FINEST = 1 << 20  # denominator of a rate; as a fraction it counts symbolic tokens without rounding


def token_axis(shape: Sequence[int]) -> int | None:
    """Return the token axis of a value: 1, the middle one of [batch, tokens, features]; None for every other rank."""
    return 1 if len(shape) == 3 else None


def carry_of_cut(graph: fx.Graph, region: Region, cut: int) -> fx.Node | None:
    """Return the residual stream that a cut is added to, as it is before the region adds anything to it.

    Args:
        graph: The block graph in which the region was found.
        region: One of its regions.
        cut: Index into ``region.cuts``.

    Returns:
        The node that holds the region's input for the cut's tokens, the operand of the residual add whose branch
        depends on the cut: [batch, tokens, any width], the batch and tokens of the cut. None where there is no such
        node (the cut is no [batch, tokens, features], or its tokens are not those of one stream), so that tokens of
        this cut cannot be ranked.
    """
    nodes = {node.name: node for node in graph.nodes}
    shape = region.cuts[cut].shape
    if token_axis(shape) is None or _has_channels_first(nodes[region.cuts[cut].node]):
        return None
    if joined := [node for node in graph.nodes if node.meta.get("streams_of") == region.cuts[cut].node]:
        return joined[0]  # type: ignore[no-any-return]
    mine = descendants_of(nodes[region.cuts[cut].node])
    after_cuts = descendants_of(*(nodes[other.node] for other in region.cuts))
    for branch, operand in zip(region.branches, region.carries, strict=True):
        carry = _before_own_adds(nodes[operand], {nodes[name] for name in region.branches})
        carry = stream_into(carry, nodes[branch])
        if nodes[branch] in mine and carry not in after_cuts and _same_tokens(carry, shape):
            return carry
    return None


def carries_of(graph: fx.Graph, region: Region) -> tuple[fx.Node, ...] | None:
    """Return ``carry_of_cut`` of every cut; None where one has none, so that the region cannot be pruned."""
    carries = [carry_of_cut(graph, region, cut) for cut in range(len(region.cuts))]
    present = tuple(carry for carry in carries if carry is not None)
    return present if len(present) == len(carries) else None


def region_carries(structure: Structure) -> tuple[tuple[fx.Node, ...] | None, ...]:
    """Return for each region the carry of each of its cuts, or None if it cannot be pruned."""
    found = structure.for_each_region(lambda block, index: carries_of(block.module.graph, block.regions[index]))
    kept = zip(found, region_samples(structure), strict=True)
    return tuple(None if samples.fault else carries for carries, samples in kept)


def pruning_faults(structure: Structure) -> tuple[str, ...]:
    """Return for each region why its tokens cannot be pruned; empty where they can."""
    found = structure.for_each_region(lambda block, index: _fault(block.module.graph, block.regions[index]))
    return tuple(fault or samples.fault for fault, samples in zip(found, region_samples(structure), strict=True))


def _fault(graph: fx.Graph, region: Region) -> str:
    for number, cut in enumerate(region.cuts):
        if carry_of_cut(graph, region, number) is None:
            axis = token_axis(cut.shape)
            fault = "no token axis" if axis is None else f"{cut.shape[axis]} tokens, not those of a residual stream"
            if _has_channels_first(find_node(graph, cut.node)):
                fault = "channels before its tokens"
            return f"its output {cut.node} {list(cut.shape)} has {fault}"
    return ""


def stream_into(operand: fx.Node, branch: fx.Node) -> fx.Node:
    """Return the residual stream as a branch reads it.

    That is the operand of its add, or what the operand was before a cast or before parallel branches were added.
    """
    read = ancestors_of(branch)
    frontier, seen = [operand], {operand}
    shape = comparable(tensor_of(operand).shape)
    while frontier:
        node = frontier.pop(0)
        if node in read:
            return node
        for source in node.all_input_nodes:
            if source not in seen and holds_tensor(source) and comparable(tensor_of(source).shape) == shape:
                seen.add(source)
                frontier.append(source)
    return operand


def join_streams(graph: fx.Graph, region: Region) -> None:
    """Add the carry of a cut that holds several streams, one after the other: their concatenation.

    The new node is dead, and gone from every variant that does not rank its tokens. Where the streams do not make
    up the cut, nothing is added.
    """
    nodes = {node.name: node for node in graph.nodes}
    for number, cut in enumerate(region.cuts):
        if token_axis(cut.shape) is None or carry_of_cut(graph, region, number) is not None:
            continue
        parts: dict[int, fx.Node] = {}
        for branch, operand in zip(region.branches, region.carries, strict=True):
            start = _token_offset(nodes[branch], nodes[cut.node])
            if start is not None and holds_tensor(nodes[operand]):
                parts[start] = nodes[operand]
        streams = [parts[start] for start in sorted(parts)]
        samples, tokens, _ = comparable(cut.shape)
        widths = [comparable(tensor_of(stream).shape) for stream in streams]
        starts = tuple(sum(width[1] for width in widths[:index]) for index in range(len(widths)))
        whole = all(len(width) == 3 and width[0] == samples for width in widths)
        if not whole or starts != comparable(sorted(parts)) or sum(width[1] for width in widths) != tokens:
            continue
        last = max(streams, key=list(graph.nodes).index)
        before = (
            next(node for node in graph.nodes if node.op != "placeholder") if last.op == "placeholder" else last.next
        )
        with graph.inserting_before(before):
            joined = add_call(graph, aten.cat.default, streams, 1)
        joined.meta["streams_of"] = cut.node


def _token_offset(branch: fx.Node, cut: fx.Node) -> int | None:
    """Return the position in the cut's tokens where the branch begins; None if it does not depend on the cut."""
    frontier = [(branch, 0)]
    seen: set[fx.Node] = set()
    while frontier:
        node, offset = frontier.pop()
        if node is cut:
            return offset
        if node in seen:
            continue
        seen.add(node)
        frontier.extend((source, offset + _start(node)) for source in node.all_input_nodes)
    return None


def _start(node: fx.Node) -> int:
    """Return the first token that a slice or a part of a split takes."""
    if node.target is aten.slice.Tensor and len(node.args) > 2 and node.args[1] in (1, -2):
        first = with_values(node.args[2])
        return slice_bounds(first, None, tensor_of(node.all_input_nodes[0]).shape[1])[0]  # type: ignore[no-any-return]
    if node.target is operator.getitem:
        split: Any = node.args[0]
        axis = split.args[2] if len(split.args) > 2 else 0
        if split.target in (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default) and axis in (1, -2):
            return sum(part.shape[1] for part in split.meta["val"][: node.args[1]])
    return 0


def _before_own_adds(operand: fx.Node, branches: set[fx.Node]) -> fx.Node:
    """Return the stream before the adds of the same region, where its branches are added one after the other."""
    while own := [source for source in operand.all_input_nodes if source in branches]:
        others = [source for source in operand.all_input_nodes if source not in own]
        if len(others) != 1:
            break
        operand = others[0]
    return operand


def _has_channels_first(cut: fx.Node) -> bool:
    return packet(cut) in CONVOLUTIONS


def _same_tokens(carry: fx.Node, shape: tuple[int, ...]) -> bool:
    if not holds_tensor(carry):
        return False
    own = tensor_of(carry).shape
    return token_axis(own) is not None and comparable(own[:2]) == comparable(shape[:2])


def wanted_tokens(region: Region, cut: int, action: Action) -> int:
    """Return how many tokens of a cut are computed: by ``rate`` for the longest token group, else by ``side_rate``.

    Where the number of tokens is symbolic, so is this.
    """
    counts = [entry.shape[1] for entry in region.cuts]
    rate = Fraction(action.rate if counts[cut] == max(counts) else action.side_rate).limit_denominator(_FINEST)
    return counts[cut] - rate.numerator * counts[cut] // rate.denominator
