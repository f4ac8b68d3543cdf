"""What each step of a plan costs, and what the plan keeps."""

from dataclasses import dataclass

from matplotlib.axes import Axes

from soda_compile.planner.costs import Costs
from soda_compile.planner.make import slot_memory_bytes
from soda_compile.plans.plan import Plan
from soda_compile.report.subject import Subject


@dataclass(frozen=True)
class StepCosts:
    """Costs by step.

    Attributes:
        unit: "MFLOPs", "GFLOPs", "TFLOPs" or "ms".
        full: Cost of a call that computes everything.
        steps: Cost of a call at each step.
        memory_bytes: What the plan keeps for one branch of guidance, from the first step to the last; None where the
            sizes of what regions give are not known.
    """

    unit: str
    full: float
    steps: tuple[float, ...]
    memory_bytes: int | None


def step_costs(subject: Subject, plan: Plan) -> StepCosts:
    """Return what each step of a plan costs: measured times with a profile, FLOPs without."""
    costs = Costs.read(subject.sensitivity, subject.profile)
    scale, unit = (1000.0, "ms") if costs.unit == "us" else _readable(costs.full)
    steps = tuple(costs.of([(row[step],) for row in plan.actions]) / scale for step in range(plan.steps))
    memory = None if subject.profile is None else slot_memory_bytes(subject.profile, plan.actions, plan.slots)
    return StepCosts(unit, costs.full / scale, steps, memory)


def _readable(flops: float) -> tuple[float, str]:
    """Return the unit in which a number of FLOPs is short, and its size."""
    scale, prefix = next(((size, name) for size, name in ((1e12, "T"), (1e9, "G")) if flops >= size), (1e6, "M"))
    return scale, f"{prefix}FLOPs"


def draw_steps(axis: Axes, costs: StepCosts) -> None:
    """Draw a bar for each step, beside what computing everything costs."""
    axis.axhline(costs.full, color="#bbbbbb", linewidth=1, label="computing everything")
    axis.bar(range(len(costs.steps)), costs.steps, color="#1f3a5f", width=0.8, label="this plan")
    axis.set_xlabel("step", fontsize=9)
    axis.set_ylabel(f"{costs.unit} a call", fontsize=9)
    kept = "" if costs.memory_bytes is None else f"; {costs.memory_bytes / 1e6:.3g} MB kept a branch of guidance"
    axis.set_title(f"cost of each step{kept}", fontsize=11, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_ylim(0, costs.full * 1.15)
    axis.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
