"""Error against speedup: what plans of every budget come to, by the same measurement."""

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from soda_compile.errors import PlanError
from soda_compile.planner import AnchorSchedule, FixedInterval, Strategy
from soda_compile.planner import plan as make_plan
from soda_compile.planner.costs import Costs
from soda_compile.plans.plan import Plan
from soda_compile.report.subject import Subject


@dataclass(frozen=True)
class Point:
    """One plan.

    Attributes:
        anchors: Steps that compute everything.
        speedup: Cost of computing everything / cost of the plan.
        error: Predicted, in the unit of the objective.
    """

    anchors: int
    speedup: float
    error: float


@dataclass(frozen=True)
class Tradeoff:
    """Plans of all budgets, and the one that was chosen.

    Attributes:
        unit: What a speedup is of: "FLOPs" or "measured time".
        objective: What errors are of.
        planned: The best anchors, for each number of them.
        even: The same numbers of anchors, spread evenly.
        chosen: The plan of the report; None without one.
    """

    unit: str
    objective: str
    planned: tuple[Point, ...]
    even: tuple[Point, ...]
    chosen: Point | None


def tradeoff_of(subject: Subject) -> Tradeoff:
    """Plan for every number of anchors by the operator and the objective of the plan."""
    costs = Costs.read(subject.sensitivity, subject.profile)
    settings = _settings(subject.plan)
    planned, even = (_points(subject, costs, kind(**settings)) for kind in (AnchorSchedule, FixedInterval))
    unit = "FLOPs" if costs.unit == "FLOPs" else "measured time"
    chosen = None if subject.plan is None else _point(costs, subject.plan)
    return Tradeoff(unit, str(settings.get("objective", "residual")), planned, even, chosen)


def draw_tradeoff(axis: Axes, tradeoff: Tradeoff) -> None:
    """Draw both curves and the chosen plan."""
    for points, name, colour in ((tradeoff.even, "anchors spread evenly", "#bbbbbb"),
                                 (tradeoff.planned, "best anchors", "#1f3a5f")):  # fmt: skip
        axis.plot([each.speedup for each in points], [each.error for each in points], ".-", color=colour, label=name)
    if tradeoff.chosen is not None:
        axis.plot(tradeoff.chosen.speedup, tradeoff.chosen.error, "o", color="#d9793b", markersize=9, label="this plan")
    axis.set_yscale("log")
    axis.set_xlabel(f"speedup by {tradeoff.unit}", fontsize=9)
    axis.set_ylabel(f"predicted {tradeoff.objective} error, summed", fontsize=9)
    axis.set_title("error against speedup", fontsize=11, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#eeeeee")
    axis.legend(frameon=False, fontsize=8)


def _settings(plan: Plan | None) -> dict[str, Any]:
    """Return the settings of a strategy that the plan names, where it was made by one."""
    method = {} if plan is None else dict(plan.method)
    return {name: method[name] for name in ("operator", "objective", "step_weights") if method.get(name) is not None}


def _points(subject: Subject, costs: Costs, strategy: Strategy) -> tuple[Point, ...]:
    found = []
    for anchors in range(1, subject.sensitivity.info.steps):
        try:
            made = make_plan(subject.sensitivity, strategy=strategy, anchors=anchors)
        except PlanError:  # an interval is longer than was measured
            continue
        if (point := _point(costs, made)) is not None:
            found.append(point)
    return tuple(found)


def _point(costs: Costs, plan: Plan) -> Point | None:
    if plan.predicted_error is None:
        return None
    return Point(len(plan.anchors), plan.steps * costs.full / costs.of(plan.actions), plan.predicted_error)
