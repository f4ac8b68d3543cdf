"""Memory of kept values by policy, from plans alone."""

from collections.abc import Callable
from typing import Any

from benchmarks.cuda_codegen.capturing import deep_structure
from benchmarks.cuda_codegen.models import SUBJECTS, WAN_720P
from benchmarks.cuda_codegen.programs import NoCode, constants_stood_in
from benchmarks.cuda_codegen.variants import STALE
from soda_compile.compiler.bind import prunable_regions
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.program import build_program
from soda_compile.compiler.whole_stack import stack_bytes
from soda_compile.ir.structure import Structure
from soda_compile.plans.actions import COMPUTE, REUSE, Action, prune
from soda_compile.plans.plan import Plan
from soda_compile.plans.plan_file import SlotDtype, Slots
from soda_compile.plans.pruning import Pruning

Row = tuple[Action, ...]
Policy = tuple[Callable[[int], Row], Slots, SlotDtype | None]


def slot_memory(name: str) -> list[dict[str, Any]]:
    """Rows of the table for a denoiser."""
    subject = WAN_720P if name == "wan720p" else SUBJECTS[name]
    structure = deep_structure(subject.config)
    return [
        {
            "name": name,
            "title": subject.config.title,
            "weight_bytes": structure.weight_bytes,
            "policy": policy,
            "branches": subject.branches,
            "branch_bytes": kept,
            "bytes": kept * subject.branches,
        }
        for policy, (row, slots, slot_dtype) in policies(structure).items()
        if (kept := policy_bytes(structure, row, slots, slot_dtype))
    ]


def policies(structure: Structure) -> dict[str, Policy]:
    """What plans do, by region, what they keep, and what it is rounded to."""
    stale: dict[str, Callable[[int], Row]] = {
        str(action): lambda number, row=(*[COMPUTE] * history, action): row  # type: ignore[misc]
        for history, action in enumerate(STALE, 1)
    }
    made: dict[str, Policy] = {name: (row, "region", None) for name, row in stale.items()}
    made |= {f"{name}, int8": (row, "region", "int8") for name, row in stale.items()}
    made |= {name: (row, "region", None) for name, row in by_kind(structure).items()}
    if stack_bytes(structure) is not None:
        made |= {f"{name}, one slot for all regions": (row, "stack", None) for name, row in stale.items()}
        made |= {f"{name}, one slot, float8": (row, "stack", "float8") for name, row in stale.items()}
    return made


def by_kind(structure: Structure) -> dict[str, Callable[[int], Row]]:
    """What plans do that treat regions of one kind unlike others."""
    made: dict[str, Callable[[int], Row]] = {}
    kinds = [region.kind for region in structure.regions]
    for wanted in ("attention", "mlp"):
        if wanted in kinds:
            made[f"reuse of {wanted} alone"] = lambda number, wanted=wanted: (  # type: ignore[misc]
                (COMPUTE, REUSE) if kinds[number] == wanted else (COMPUTE, COMPUTE)
            )
    prunable = prunable_regions(structure)
    if any(prunable):
        made["prune half"] = lambda number: (COMPUTE, prune(0.5) if prunable[number] else REUSE)
    return made


def policy_bytes(
    structure: Structure, row: Callable[[int], Row], slots: Slots, slot_dtype: SlotDtype | None = None
) -> int:
    """Memory of a policy in one branch of guidance."""
    rows = tuple(map(row, range(len(structure.regions))))
    prunes = any(action.kind == "prune" for one in rows for action in one)
    pruning = Pruning("drift", share="block") if prunes else None
    plan = Plan("", structure.region_names, rows, pruning=pruning, slots=slots, slot_dtype=slot_dtype)
    with constants_stood_in():
        program = build_program(structure, plan, Lowering(target=lambda subgraph: NoCode(subgraph.key)))
    return program.slot_memory_bytes
