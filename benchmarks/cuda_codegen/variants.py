"""Every kind of step that a plan can ask for, each as one step of a small plan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from soda_compile.compiler.bind import prunable_regions
from soda_compile.compiler.whole_stack import stack_bytes
from soda_compile.ir.structure import Structure
from soda_compile.plans.actions import COMPUTE, FORECAST1, FORECAST2, REUSE, Action, prune
from soda_compile.plans.fitted_weights import OUTPUT, FittedWeights
from soda_compile.plans.plan import Plan
from soda_compile.plans.plan_file import SlotDtype
from soda_compile.plans.pruning import Pruning

Row = tuple[Action, ...]


@dataclass(frozen=True)
class Variant:
    """One kind of step.

    Attributes:
        name: What its regions do.
        plan: A plan with such a step.
        step: The number of the step.
    """

    name: str
    plan: Plan
    step: int


def variants(structure: Structure) -> list[Variant]:
    """All kinds of steps; pruning is left out where no region can be pruned."""

    def plan(row: Callable[[int], Row], **settings: object) -> Plan:
        rows = tuple(row(number) for number in range(len(structure.regions)))
        return Plan("", structure.region_names, rows, timestep_input="timestep", **settings)  # type: ignore[arg-type]

    def alike(*row: Action) -> Callable[[int], Row]:
        return lambda number: row

    def attention_kept(number: int) -> Row:
        return (COMPUTE, REUSE if "attention" in structure.regions[number].kind else COMPUTE, REUSE)

    reused, first, second = (alike(*[COMPUTE] * history, action) for history, action in enumerate(STALE, 1))
    made = [
        Variant("compute", plan(alike(COMPUTE)), 0),
        Variant("compute, kept", plan(reused), 0),
        Variant("reuse", plan(reused), 1),
        Variant("forecast 1", plan(first), 2),
        Variant("forecast 2", plan(second), 3),
        Variant("fitted reuse", plan(reused, weights=(FittedWeights(1, 0, (0.9,)),)), 1),
        Variant("fitted forecast 1", plan(first, weights=(FittedWeights(2, 1, (1.9, -0.8)),)), 2),
    ]
    if any("attention" not in region.kind for region in structure.regions):
        made.append(Variant("attention reused, rest computed", plan(attention_kept), 1))
    made.append(
        Variant("forecast 1, outputs kept", plan(first, weights=(FittedWeights(2, OUTPUT, (1.1, -0.2, 0.1)),)), 2)
    )
    made += rounded({"reuse": plan(reused), "forecast 1": plan(first)}, "int8")
    whole = on_stack(structure, {"reuse": plan(reused), "forecast 1": plan(first)})
    made += [*whole, *rounded({each.name: each.plan for each in whole[1:]}, "float8", ", one slot")]
    prunable = prunable_regions(structure)
    if any(prunable):
        half = plan(lambda number: (COMPUTE, _half(prunable, number), REUSE), pruning=Pruning("drift", share="block"))
        made += [Variant("compute, kept for pruning", half, 0), Variant("prune half", half, 1)]
    return made


def on_stack(structure: Structure, plans: Mapping[str, Plan]) -> list[Variant]:
    """The last steps of plans, and what they keep, with one slot for all regions; none where that does not go."""
    if stack_bytes(structure) is None:
        return []
    kept = {f"{name}, one slot": replace(plan, slots="stack") for name, plan in plans.items()}
    stale = [Variant(name, plan, len(plan.actions[0]) - 1) for name, plan in kept.items()]
    return [Variant("compute, kept, one slot", stale[0].plan, 0), *stale]


def rounded(plans: Mapping[str, Plan], slot_dtype: SlotDtype, slots: str = "") -> list[Variant]:
    """The last steps of plans, and what the first keeps, with slots in fewer bits."""
    kept = {name: replace(plan, slot_dtype=slot_dtype) for name, plan in plans.items()}
    stale = [Variant(f"{name}, {slot_dtype}", plan, len(plan.actions[0]) - 1) for name, plan in kept.items()]
    return [Variant(f"compute, kept{slots}, {slot_dtype}", stale[0].plan, 0), *stale] if stale else []


STALE = (REUSE, FORECAST1, FORECAST2)


def _half(prunable: Sequence[bool], number: int) -> Action:
    return prune(0.5) if prunable[number] else REUSE
