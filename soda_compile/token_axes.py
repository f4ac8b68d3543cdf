"""Which axis of a region's values runs over tokens, and which residual stream a cut's tokens belong to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from soda_compile.operators import holds_tensor, tensor_of
from soda_compile.structure import Region


def token_axis(shape: Sequence[int]) -> int | None:
    """The token axis of a value: 1, the middle one of [batch, tokens, features]; None for every other rank."""
    return 1 if len(shape) == 3 else None


def carry_of_cut(graph: fx.Graph, region: Region, cut: int) -> fx.Node | None:
    """The residual stream that a cut is added to, as it is before the region adds anything to it.

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
    if token_axis(shape) is None:
        return None
    mine = _descendants(nodes[region.cuts[cut].node])
    region_wide = set().union(*(_descendants(nodes[other.node]) for other in region.cuts))
    for branch, operand in zip(region.branches, region.carries, strict=True):
        carry = _before_own_adds(nodes[operand], {nodes[name] for name in region.branches})
        if nodes[branch] in mine and carry not in region_wide and _same_tokens(carry, shape):
            return carry
    return None


def carries_of(graph: fx.Graph, region: Region) -> tuple[fx.Node, ...] | None:
    """``carry_of_cut`` of every cut; None where one has none, so that the region cannot be pruned."""
    carries = [carry_of_cut(graph, region, cut) for cut in range(len(region.cuts))]
    known = tuple(carry for carry in carries if carry is not None)
    return known if len(known) == len(carries) else None


def _descendants(node: fx.Node) -> set[fx.Node]:
    """The node and everything that depends on it."""
    found: set[fx.Node] = set()
    frontier = [node]
    while frontier:
        current = frontier.pop()
        if current not in found:
            found.add(current)
            frontier.extend(current.users)
    return found


def _before_own_adds(operand: fx.Node, branches: set[fx.Node]) -> fx.Node:
    """The stream before the adds of the same region, where its branches are added one after the other."""
    while own := [source for source in operand.all_input_nodes if source in branches]:
        others = [source for source in operand.all_input_nodes if source not in own]
        if len(others) != 1:
            break
        operand = others[0]
    return operand


def _same_tokens(carry: fx.Node, shape: tuple[int, ...]) -> bool:
    if not holds_tensor(carry):
        return False
    own = tuple(tensor_of(carry).shape)
    return token_axis(own) is not None and own[:2] == shape[:2]
