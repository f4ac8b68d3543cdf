"""Plans of soda_compile that follow a mask, without calibration: the weights are random, fidelity is no subject."""

from soda_compile.compiler.bind import prunable_regions
from soda_compile.ir.structure import Structure
from soda_compile.plans.actions import COMPUTE, FORECAST1, REUSE, Action, prune
from soda_compile.plans.plan import Plan
from soda_compile.plans.pruning import Pruning

KINDS = ("reuse", "forecast", "prune")


def plan_for(structure: Structure, mask: tuple[bool, ...], kind: str = "reuse") -> Plan:
    """The plan that computes every region at the steps of the mask, and does something cheaper in between.

    Args:
        structure: The denoiser, from ``soda_compile.inspect``.
        mask: For each step whether it is computed.
        kind: "reuse"; "forecast" of first order, once two steps are computed; "prune" half of the tokens, choosing
            once for each block, in regions that can be pruned, and reuse in others.

    Raises:
        ValueError: For another kind, or where nothing can be pruned.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    prunable = prunable_regions(structure)
    if kind == "prune" and not any(prunable):
        raise ValueError("no region of this model can be pruned")
    rows = tuple(tuple(_row(mask, kind, can_prune)) for can_prune in prunable)
    pruning = Pruning("drift", share="block") if kind == "prune" else None
    return Plan("", structure.region_names, rows, pruning=pruning)


def _row(mask: tuple[bool, ...], kind: str, can_prune: bool) -> list[Action]:
    row: list[Action] = []
    for is_computed in mask:
        if is_computed:
            row.append(COMPUTE)
        elif kind == "forecast" and row.count(COMPUTE) > 1:
            row.append(FORECAST1)
        else:
            row.append(prune(0.5) if kind == "prune" and can_prune else REUSE)
    return row
