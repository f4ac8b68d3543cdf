"""The strategies: anchors alone, a choice for every region, and peers' and the paper's schedules to compare with."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from soda_compile.errors import OptionError, PlanError
from soda_compile.planner.anchor_count import Anchors, affordable, anchor_actions, best_anchors, draft
from soda_compile.planner.choices import Choices
from soda_compile.planner.goal import Goal
from soda_compile.planner.paper import PaperStrategy
from soda_compile.planner.problem import Draft, Problem, Strategy
from soda_compile.planner.unified import Limit, solve_unified
from soda_compile.plans.actions import COMPUTE
from soda_compile.plans.over_samples import OverSamples
from soda_compile.plans.plan_file import SlotDtype, Slots
from soda_compile.plans.pruning import Pruning
from soda_compile.plans.sensitivity import Metric


@dataclass(frozen=True)
class AnchorSchedule(Strategy):
    """All regions compute at the same steps, the anchors, and the operator serves all others.

    An interval between anchors costs the sum over its stale steps of the step's weight times the sum over regions of
    the error of the operator that will run there (see ``StaleErrors``).
    """

    name: ClassVar[str] = "dynamic programming"
    operator: str = "forecast1"
    objective: Metric = "residual"
    step_weights: bool = False
    over_samples: OverSamples = "mean"
    slots: Slots = "region"
    slot_dtype: SlotDtype | None = None

    def solve(self, problem: Problem) -> Draft:
        """Return the plan with the best anchors."""
        return draft(problem, best_anchors(problem))


@dataclass(frozen=True)
class FixedInterval(AnchorSchedule):
    """Anchors spread evenly: FORA with "reuse", TaylorSeer with a forecast.

    The objective only fills in the predicted error, which is None where an interval was not measured, and decides
    for "auto".
    """

    name: ClassVar[str] = "fixed interval"
    one_of: ClassVar[tuple[str, ...]] = ("anchors", "budget")

    def solve(self, problem: Problem) -> Draft:
        """Return the plan with as many anchors as asked for, or as the budget allows."""

        def even(count: int) -> Anchors:
            return tuple(index * problem.steps // count for index in range(count))

        count = problem.goal.anchors or affordable(problem, range(1, problem.steps + 1), even)
        return draft(problem, even(count))


@dataclass(frozen=True)
class PaperSchedule(Strategy):
    """The schedule of SODA (arXiv 2603.07057, OFS+DCS): anchors by the cosine error of reuse."""

    name: ClassVar[str] = "paper"
    operator = "reuse"
    objective = "cosine"

    def solve(self, problem: Problem) -> Draft:
        """Return the plan with the best anchors."""
        return draft(problem, best_anchors(problem))


@dataclass(frozen=True, kw_only=True)
class Unified(Strategy):
    """Every region chooses at every step between anchors: reuse, forecast, prune at each rate, compute.

    See ``solve_unified`` for what is minimised and how far from the best the result can be; the plan's method holds a
    bound. Regions prune only where that is both faster than computing and better than every forecast or reuse, and
    the plan is never worse than without pruning.

    Attributes:
        inherited_error: 0 takes a value that is computed between anchors for exact, 1 for no better than a stale one,
            so that regions compute at anchors only. The default was measured on the digits model
            (benchmarks/results/inherited_error.json).
    """

    name: ClassVar[str] = "unified"
    one_of: ClassVar[tuple[str, ...]] = ("budget", "max_error")
    optional: ClassVar[tuple[str, ...]] = ("anchors",)
    pruning: Pruning | None = None
    operator: str = "auto"
    objective: Metric = "residual"
    step_weights: bool = False
    over_samples: OverSamples = "mean"
    slot_dtype: SlotDtype | None = None
    inherited_error: float = 0.4

    def check(self, goal: Goal, steps: int) -> None:
        """Check the goal, and the share."""
        super().check(goal, steps)
        if not 0 <= self.inherited_error <= 1:
            raise OptionError(f"inherited_error is {self.inherited_error}; it is a share, from 0 to 1")

    def solve(self, problem: Problem) -> Draft:
        """Return the best plan that a multiplier on the cost finds."""
        costs, steps, budget = problem.costs, problem.steps, problem.budget
        total = steps * costs.full
        if budget is not None and budget >= total:
            return Draft(((COMPUTE,) * steps,) * len(problem.sensitivity.info.regions), 0.0)
        base = steps * costs.base / total
        limit = Limit(None if budget is None else budget / total - base, problem.goal.max_error)
        choices = Choices.read(
            problem.sensitivity, problem.errors, problem.weights, costs, problem.prune_table, self.inherited_error
        )
        solution = solve_unified(choices, limit, problem.goal.anchors, self._candidates(problem))
        if not solution.reached:
            raise problem.out_of_reach(
                (base + float(solution.rows.costs.sum())) * total,
                f"with {len(solution.anchors)} of {steps} steps as anchors; ask for less, or calibrate with a "
                f"max_interval above {problem.sensitivity.info.max_interval}",
            )
        return Draft(
            solution.rows.actions,
            float(solution.rows.errors.sum()),
            {
                "inherited_error": self.inherited_error,
                "error_bound": solution.bound,
                "multiplier": solution.multiplier,
            },
        )

    def _candidates(self, problem: Problem) -> list[Anchors]:
        try:
            return [best_anchors(problem)]
        except PlanError:
            if problem.goal.anchors is not None:
                raise
            return []  # reuse alone may still be cheap enough


@dataclass(frozen=True)
class PaperUnified(Strategy):
    """The unified adaptive strategy of SODA (arXiv 2603.07057, UAS), on anchors by cosine error of reuse.

    Attributes:
        pruning: How pruned regions pick their tokens.
        slope: Lambda in alpha = lambda * Ec + beta; alpha is the share of tokens that keep their value, so a negative
            lambda computes more of what is more sensitive.
    """

    name: ClassVar[str] = "paper"
    one_of: ClassVar[tuple[str, ...]] = ("budget",)
    optional: ClassVar[tuple[str, ...]] = ("anchors",)
    operator = "reuse"
    objective = "cosine"
    pruning: Pruning = field()  # required, although the base has None
    slope: float = -1.0

    def check(self, goal: Goal, steps: int) -> None:
        """Check the goal, which needs anchors too."""
        if goal.anchors is None or goal.max_error is not None:
            raise OptionError("the paper's strategy with pruning needs anchors and one of speedup and latency_ms")
        super().check(goal, steps)

    def solve(self, problem: Problem) -> Draft:
        """Return the paper's anchors, and between them pruning or reuse by its rule; see ``PaperStrategy``."""
        anchors = best_anchors(problem)
        costs, steps, budget, pruned = problem.costs, problem.steps, problem.budget, problem.prune_table
        assert budget is not None
        assert pruned is not None
        reuse = problem.sensitivity.table("cosine", "reuse").astype(np.float64)
        found = PaperStrategy.read(reuse, pruned, anchors, costs, self.slope).within(budget - steps * costs.base)
        if found is None:
            how = f"with {len(anchors)} of {steps} steps as anchors; ask for less or for fewer anchors"
            raise problem.out_of_reach(costs.of(anchor_actions(problem, anchors)), how)
        rows, beta = found
        return Draft(rows.actions, float(rows.errors.sum()), {"lambda": self.slope, "beta": beta})
