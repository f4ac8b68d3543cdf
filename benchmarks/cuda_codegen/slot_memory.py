"""Memory of kept values by policy, from plans alone."""

from collections.abc import Callable
from typing import Any

from benchmarks.cuda_codegen.capturing import structure_on_gpu
from benchmarks.cuda_codegen.models import SUBJECTS, WAN_720P
from benchmarks.cuda_codegen.programs import NoCode, constants_stood_in
from benchmarks.cuda_codegen.variants import STALE
from soda_compile.compiler.bind import prunable_regions
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.program import build_program
from soda_compile.ir.structure import Structure
from soda_compile.plans.actions import COMPUTE, REUSE, Action, prune
from soda_compile.plans.plan import Plan
from soda_compile.plans.pruning import Pruning


def policies(structure: Structure) -> dict[str, Plan]:
    """Plans by what they do between computed steps."""
    kinds = [region.kind for region in structure.regions]

    def plan(row: Callable[[int], tuple[Action, ...]], pruning: Pruning | None = None) -> Plan:
        return Plan("", structure.region_names, tuple(map(row, range(len(kinds)))), pruning=pruning)

    made = {
        str(action): plan(lambda number, row=(*[COMPUTE] * count, action): row)  # type: ignore[misc]
        for count, action in enumerate(STALE, 1)
    }
    for wanted in ("attention", "mlp"):
        if {wanted} < set(kinds):
            made[f"reuse of {wanted} alone"] = plan(
                lambda number, wanted=wanted: (COMPUTE, REUSE if kinds[number] == wanted else COMPUTE)  # type: ignore[misc]
            )
    prunable = prunable_regions(structure)
    if any(prunable):
        made["prune half"] = plan(
            lambda number: (COMPUTE, prune(0.5) if prunable[number] else REUSE), Pruning("drift", share="block")
        )
    return made


def slot_memory(name: str) -> list[dict[str, Any]]:
    """Rows of the table for a denoiser."""
    subject = WAN_720P if name == "wan720p" else SUBJECTS[name]
    structure = structure_on_gpu(subject.config)
    rows = []
    for policy, plan in policies(structure).items():
        with constants_stood_in():
            program = build_program(structure, plan, Lowering(target=lambda subgraph: NoCode(subgraph.key)))
        rows.append(
            {
                "name": name,
                "title": subject.config.title,
                "weight_bytes": structure.weight_bytes,
                "policy": policy,
                "branches": subject.branches,
                "branch_bytes": program.slot_memory_bytes,
                "bytes": program.slot_memory_bytes * subject.branches,
            }
        )
    return rows
