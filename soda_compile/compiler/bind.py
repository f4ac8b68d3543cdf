"""Binding of a plan to the denoiser that it must fit."""

from collections.abc import Sequence

from soda_compile.analysis.token_axes import pruning_faults
from soda_compile.errors import PlanError
from soda_compile.ir.structure import Structure
from soda_compile.plans.plan import Plan


def require_fit(plan: Plan, structure: Structure) -> None:
    """Check that a plan was made for this model.

    Raises:
        PlanError: Naming the regions that differ, or that the weights' shapes do.
    """
    if plan.regions != structure.region_names:
        missing = [name for name in plan.regions if name not in structure.region_names]
        extra = [name for name in structure.region_names if name not in plan.regions]
        raise PlanError(
            f"the plan is for another model: it has {len(plan.regions)} regions, this graph has "
            f"{len(structure.region_names)}"
            + (f"; not in this graph: {_some(missing)}" if missing else "")
            + (f"; not in the plan: {_some(extra)}" if extra else "")
            + ". Calibrate this model; if it is the same model, look for a graph break with fullgraph=True"
        )
    if plan.fingerprint and plan.fingerprint != structure.fingerprint:
        raise PlanError(
            f"the plan is for a model with the same region names but other weights' shapes (fingerprint "
            f"{plan.fingerprint}, this model {structure.fingerprint}). Calibrate this model"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def prunable_regions(structure: Structure) -> tuple[bool, ...]:
    """Return for each region whether its outputs share their token axis with a residual stream, to rank tokens by.

    Samples must be on the axis before it.
    """
    return tuple(not fault for fault in pruning_faults(structure))


def require_token_axes(structure: Structure, plan: Plan) -> None:
    """Check that every region that is to be pruned can be.

    Raises:
        PlanError: Naming the first that cannot, or a batch that does not fall into the plan's groups.
    """
    if plan.pruning is None:
        return
    rows = zip(plan.regions, plan.actions, structure.regions, pruning_faults(structure), strict=True)
    for name, actions, region, fault in rows:
        if not any(action.kind == "prune" for action in actions):
            continue
        if fault:
            raise PlanError(f"region {name!r} cannot prune tokens: {fault}; let it reuse or forecast")
        if region.cuts[0].shape[0] % plan.pruning.groups:
            raise PlanError(
                f"region {name!r}: a batch of {region.cuts[0].shape[0]} does not fall into {plan.pruning.groups} "
                "equal groups; change Pruning.groups"
            )
