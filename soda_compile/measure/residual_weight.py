"""The weight of a change of a cut in the residual stream."""

import logging
from collections.abc import Sequence

import torch

from soda_compile.analysis.cut_to_branch import CutToBranch
from soda_compile.ir.aten_operators import LOOK_THROUGH, aten, packet

log = logging.getLogger(__name__)

# Operators that keep features apart from each other and are affine in the one argument that depends on the cut.
_AFFINE = LOOK_THROUGH - {aten.clamp, aten.clip, aten.clamp_min, aten.clamp_max} | {
    aten.mul,
    aten.div,
    aten.add,
    aten.sub,
    aten.neg,
    aten.cat,
}


def residual_weight(
    head: CutToBranch, cuts: Sequence[torch.Tensor], others: Sequence[torch.Tensor]
) -> list[torch.Tensor] | None:
    """Return the squared factors with which each element of the cuts enters the residual stream.

    Where only gates, casts, views and slices lie between cut and residual add, the map A from cut to branch is
    diagonal up to selection, so ``|A x|^2 = sum(w x^2)`` with ``w = A^T A 1``: one product with A and one with its
    transpose.

    Args:
        head: The graph from the cuts to the branches.
        cuts: Their present values.
        others: The values of ``head.others``.

    Returns:
        float32 tensors in the shapes of the cuts; None where A is the identity, or is not of that kind (a norm
        after the module, say) and the change is taken as it is.
    """
    body = [node for node in head.module.graph.nodes if node.op == "call_function"]
    if not any(packet(node) in {aten.mul, aten.div} for node in body):
        return None
    if unknown := [
        str(packet(node)) for node in body if packet(node) not in _AFFINE and "getitem" not in str(node.target)
    ]:
        log.debug("no residual weight: %s between cut and residual add", unknown)
        return None

    def branch(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results: tuple[torch.Tensor, ...] = head.module(*values, *others)
        return results

    ones = tuple(torch.ones_like(cut) for cut in cuts)
    zeros = tuple(torch.zeros_like(cut) for cut in cuts)
    with torch.enable_grad():
        at_ones, transpose = torch.func.vjp(branch, *ones)[:2]
    at_zero = branch(*zeros)
    weights = transpose(tuple(one - zero for one, zero in zip(at_ones, at_zero, strict=True)))
    return [weight.float() for weight in weights]
