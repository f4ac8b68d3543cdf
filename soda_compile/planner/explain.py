"""Reasons for a plan, region by region, in words and numbers."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from soda_compile.errors import PlanError
from soda_compile.planner.choices import history
from soda_compile.planner.costs import Costs
from soda_compile.planner.stale_errors import OPERATOR_CHOICES, Floats, StaleErrors
from soda_compile.plans.actions import COMPUTE, PRUNE_RATES, prune
from soda_compile.plans.plan import Plan
from soda_compile.plans.plan_grid import collapse
from soda_compile.plans.profile import Profile
from soda_compile.plans.sensitivity import Sensitivity


def explain(
    plan: Plan, sensitivity: Sensitivity, profile: Profile | None = None, reasons: Iterable[object] = ()
) -> str:
    """Say for each region what it does, and why it prunes or does not.

    A line such as "pruned at 9 steps: 41 us against 77 us, error .002 against .011" compares the mean cost with that
    of computing, and the mean error with that of the best reuse or forecast at the same steps.

    Args:
        plan: a plan that `plan` made from this sensitivity.
        sensitivity: what it was made from.
        profile: measured times; without them costs are FLOPs.
        reasons: what the compiler can do in each region and why not more, `soda_compile.why(structure)`.

    Returns:
        One line for each group of regions that say the same, the reasons, and a line of totals.

    Raises:
        PlanError: the plan, the sensitivity and the profile are not for the same model and steps.
        SensitivityError: a table that the plan was made with is missing.
    """
    if plan.regions != sensitivity.info.regions or plan.steps != sensitivity.info.steps:
        raise PlanError("the plan was not made from this sensitivity: its regions or steps are others")
    evidence = _Evidence.read(plan, sensitivity, profile)
    lines = [evidence.line(region) for region in range(len(plan.regions))]
    labelled = [f"{label}: {line}" for label, line in collapse(plan.regions, lines)]
    return "\n".join([*labelled, *map(str, reasons), *evidence.totals()])


@dataclass(frozen=True, eq=False)
class _Evidence:
    """The evidence that the lines are made of.

    Attributes:
        plan: the plan.
        costs: of all actions.
        stale: [R, T], the error of the best reuse or forecast at each step, with the history that the plan gives.
        pruned: [R, T, 7], the error of pruning at each rate; None where the plan was made without.
    """

    plan: Plan
    costs: Costs
    stale: Floats
    pruned: Floats | None

    @classmethod
    def read(cls, plan: Plan, sensitivity: Sensitivity, profile: Profile | None) -> "_Evidence":
        method = dict(plan.method)
        objective, operator = str(method.get("objective", "residual")), str(method.get("operator", "auto"))
        errors = StaleErrors.read(sensitivity, operator if operator in OPERATOR_CHOICES else "auto", objective)
        computed = np.array([[action == COMPUTE for action in row] for row in plan.actions])
        last, spacing = history(computed)
        step, region = np.arange(plan.steps), np.arange(len(computed))[:, None]
        age = step - last
        measured = (age >= 1) & (age <= errors.width)
        index = np.clip(age, 1, errors.width) - 1
        values = []
        for number, table in enumerate(errors.tables):
            allowed = errors.runs(number, last, spacing)
            value = table[step, region, index, np.clip(spacing, 1, errors.width + 1) - 1]
            values.append(np.where(allowed & measured, value, np.nan))
        score = plan.pruning.score if plan.pruning else method.get("score")
        pruned = None
        if score is not None:
            table = sensitivity.table(objective, f"prune.{score}").astype(np.float64)
            pruned = np.where(measured[..., None], table[step, region, index], np.nan)
        return cls(plan, Costs.read(sensitivity, profile), np.fmin.reduce(values), pruned)

    def line(self, region: int) -> str:
        """Return the lines on what one region does, and why."""
        row = self.plan.actions[region]
        counts = Counter("pruned" if action.kind == "prune" else str(action) for action in row)
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        return f"{said}; {self._pruned(region) or self._not_pruned(region)}" if self.pruned is not None else said

    def _pruned(self, region: int) -> str:
        assert self.pruned is not None
        row = self.plan.actions[region]
        steps = [step for step, action in enumerate(row) if action.kind == "prune"]
        if not steps:
            return ""
        rates = [PRUNE_RATES.index(row[step].rate) for step in steps]
        cost = float(np.mean([self.costs.column(prune(row[step].rate))[region] for step in steps]))
        error, other = float(np.mean(self.pruned[region, steps, rates])), float(np.mean(self.stale[region, steps]))
        shares = ", ".join(f"{rate:.3g}" for rate in sorted({row[step].rate for step in steps}))
        return (
            f"pruned at {len(steps)} steps (rates {shares}): {self._cost(cost)} against {self._full(region)}, error "
            f"{_short(error)} against {_short(other)}"
        )

    def _not_pruned(self, region: int) -> str:
        assert self.pruned is not None
        cost = np.array([self.costs.column(prune(rate))[region] for rate in PRUNE_RATES])
        if not np.isfinite(cost).any():
            return "not pruned: its tokens cannot be picked apart"
        faster = cost < self.costs.column(COMPUTE)[region]
        if not faster.any():
            return f"not pruned: no rate is faster, {self._cost(float(cost.min()))} against {self._full(region)}"
        stale = np.array([action.kind in ("reuse", "forecast") for action in self.plan.actions[region]])
        if not stale.any():
            return "not pruned: it computes at every step"
        best = self.pruned[region][:, faster].min(axis=1)
        better = stale & (best < self.stale[region])
        if not better.any():
            own, other = float(np.nanmean(best[stale])), float(np.nanmean(self.stale[region][stale]))
            return f"not pruned: no faster rate is better, error {_short(own)} against {_short(other)}"
        return "not pruned: what that would cost saves more error elsewhere"

    def totals(self) -> Iterator[str]:
        """Return the lines on what the whole plan costs, and how far it may be from the best."""
        plan, method = self.plan, dict(self.plan.method)
        total = plan.steps * plan.calls_per_step * self.costs.full
        cost = self.costs.of(plan.actions) * plan.calls_per_step
        if self.costs.unit == "us":
            yield f"predicted time: {cost / 1000:.1f} ms of {total / 1000:.1f} ms, {total / cost:.2f} times as fast"
        else:
            yield f"predicted FLOPs: {cost / total:.3f} of computing everything"
        if plan.predicted_error is not None:
            bound = method.get("error_bound")
            least = f"; no plan with these anchors has less than {_short(float(bound))}" if bound is not None else ""
            yield f"predicted error: {_short(plan.predicted_error)}{least}"

    def _full(self, region: int) -> str:
        return self._cost(float(self.costs.column(COMPUTE)[region]))

    def _cost(self, value: float) -> str:
        if self.costs.unit == "us":
            return f"{value:.3g} us"
        prefix, scale = next((p, s) for p, s in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("", 1.0)) if value >= s or not p)
        return f"{value / scale:.3g} {prefix}FLOP"


def _short(value: float) -> str:
    """Return two digits, and no zero before the point."""
    text = f"{value:.2g}"
    return text[1:] if text.startswith("0.") else text
