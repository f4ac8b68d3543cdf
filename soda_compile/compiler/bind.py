"""Binding of a plan to the denoiser that it must fit."""

from collections.abc import Sequence

import torch

from soda_compile.analysis.token_axes import pruning_faults
from soda_compile.errors import PlanError
from soda_compile.ir.structure import Structure
from soda_compile.plans.plan import Plan

_FLOAT8 = (8, 9)


def require_fit(plan: Plan, structure: Structure) -> None:
    """Check that a plan was made for this model, or for what a module passes its calls to, or the other way round.

    Raises:
        PlanError: Naming the regions that differ, or that the weights' shapes do.
    """
    if not _same_but_for_wrapper(plan.regions, structure.region_names):
        missing = [name for name in plan.regions if name not in structure.region_names]
        extra = [name for name in structure.region_names if name not in plan.regions]
        raise PlanError(
            f"the plan is for another model: it has {len(plan.regions)} regions, this graph has "
            f"{len(structure.region_names)}"
            + (f"; not in this graph: {_some(missing)}" if missing else "")
            + (f"; not in the plan: {_some(extra)}" if extra else "")
            + ". Calibrate this model; if it is the same model, look for a graph break with fullgraph=True. Hooks on "
            "its layers break it, as of group offloading: accelerate(pipe, plan) leaves them out. So do those of "
            "fully_shard, which must be called on the model alone"
        )
    fingerprint = structure.fingerprint_under(plan.regions)
    if plan.fingerprint and plan.fingerprint != fingerprint:
        raise PlanError(
            f"the plan is for a model with the same region names but other weights' shapes (fingerprint "
            f"{plan.fingerprint}, this model {fingerprint}). Calibrate this model"
        )


def _same_but_for_wrapper(names: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether names are equal, but for the path of the model in a wrapper, in front of all on one side."""
    if len(names) != len(others):
        return False
    pairs = list(zip(names, others, strict=True))
    in_front = ({_in_front(*pair) for pair in pairs}, {_in_front(*pair[::-1]) for pair in pairs})
    return any(len(paths) == 1 and None not in paths for paths in in_front)


def _in_front(name: str, other: str) -> str | None:
    """Return the path that the other name has in front of this one, inside the same call; None if it is another's."""
    (call, _, path), (other_call, _, longer) = name.rpartition(")"), other.rpartition(")")  # "(head).embed"
    path, longer = path.lstrip("."), longer.lstrip(".")
    if call != other_call or (path and not f".{longer}".endswith(f".{path}")):
        return None
    return longer.removesuffix(path).rstrip(".")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def prunable_regions(structure: Structure) -> tuple[bool, ...]:
    """Return for each region whether its outputs share their token axis with a residual stream, to rank tokens by.

    Samples must be on the axis before it.
    """
    return tuple(not fault for fault in pruning_faults(structure))


def require_slot_dtype(plan: Plan, device: torch.device) -> None:
    """Check that code can be made for what a plan rounds to.

    From 2.13 on torch leaves to a library what Triton cannot convert.

    Raises:
        PlanError: For float8 on a GPU that cannot convert to it.
    """
    is_cuda = device.type == "cuda" and torch.cuda.is_available()
    if plan.slot_dtype != "float8" or not is_cuda or torch.__version__ >= "2.13":
        return
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < _FLOAT8:
        raise PlanError(
            f"slot_dtype is 'float8', but {torch.cuda.get_device_name(device)} has compute capability "
            f"{'.'.join(map(str, capability))}, and before torch 2.13 converting to float8 needs "
            f"{'.'.join(map(str, _FLOAT8))}; take slot_dtype='int8' or 'bfloat16'"
        )


def require_token_axes(structure: Structure, plan: Plan) -> None:
    """Check that every region that is to be pruned can be.

    Raises:
        PlanError: Naming the first that cannot, or a batch that does not fall into the plan's groups.
    """
    if plan.pruning is None:
        return
    rows = zip(plan.regions, plan.actions, structure.regions, pruning_faults(structure.example), strict=True)
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
