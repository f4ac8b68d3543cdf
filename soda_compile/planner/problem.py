"""One planning problem: what was measured, what it costs, what is asked for, and how to search."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, get_args

import numpy as np

from soda_compile.errors import OptionError
from soda_compile.planner.anchors import IntervalCosts
from soda_compile.planner.costs import Costs
from soda_compile.planner.goal import Goal
from soda_compile.planner.stale_errors import Floats, StaleErrors
from soda_compile.plans.actions import Action
from soda_compile.plans.over_samples import OverSamples
from soda_compile.plans.plan_file import Scalar, SlotDtype, Slots
from soda_compile.plans.profile import Profile
from soda_compile.plans.pruning import Pruning
from soda_compile.plans.sensitivity import Metric, Sensitivity

Actions = tuple[tuple[Action, ...], ...]


@dataclass(frozen=True, eq=False)
class Draft:
    """The result of a strategy.

    Attributes:
        actions: Indexed [region][step].
        error: Value of the objective; None where an entry was not measured.
        method: Further facts for the plan's file.
        slots: What is kept.
        slot_dtype: What it is rounded to; None for no rounding.
    """

    actions: Actions
    error: float | None
    method: dict[str, Scalar] = field(default_factory=dict)
    slots: Slots = "region"
    slot_dtype: SlotDtype | None = None


class Strategy(ABC):
    """A way to search for a plan; implementations are frozen dataclasses whose fields are their settings.

    Attributes:
        name: What the plan's file calls it.
        alike: Whether all regions do the same at a stale step, even where the operator is "auto".
        one_of: Numbers of a goal of which exactly one decides; "budget" stands for all that bound the cost.
        optional: Numbers that a goal may have on top.
        operator: What stale regions do: a name of ``plans.operators.OPERATORS``, or "auto" for the one with the
            smallest measured error per step and region, among those offered by default.
        objective: Metric that is summed: "residual", "relative" or "cosine".
        step_weights: Weight each step by how far an error there moves the sample. Off by default: on the digits
            model (benchmarks/results) unweighted residual errors came closer to the original in every comparison.
        over_samples: What counts of the errors of samples: their mean, or the worst, their 90th percentile.
        slots: What is kept: the outputs of each region, or one value for all of them together, which takes a small part
            of the memory. Where ``memory_bytes`` asks for it, that is chosen without being named.
        slot_dtype: What kept values are rounded to, see ``Plan``; chosen likewise.
        pruning: How pruned regions pick their tokens; None for no pruning.
        inherited_error: Share of a stale value's error that remains in what is computed between anchors.
    """

    name: ClassVar[str]
    alike: ClassVar[bool] = False
    one_of: ClassVar[tuple[str, ...]] = ("anchors", "budget", "max_error")
    optional: ClassVar[tuple[str, ...]] = ()
    operator: str
    objective: Metric
    step_weights: bool = False
    over_samples: OverSamples = "mean"
    slots: Slots = "region"
    slot_dtype: SlotDtype | None = None
    pruning: Pruning | None = None
    inherited_error: float = 0.0

    def check(self, goal: Goal, steps: int) -> None:
        """Check that this strategy can reach such a goal, and its settings.

        Raises:
            OptionError: If the numbers contradict each other, or a setting is impossible.
            PlanError: If a number is impossible.
        """
        goal.check(steps, self.one_of, self.optional)
        if self.slots not in get_args(Slots):
            raise OptionError(f"slots {self.slots!r} is not known; use one of {', '.join(get_args(Slots))}")
        if self.slot_dtype is not None and self.slot_dtype not in get_args(SlotDtype):
            raise OptionError(
                f"slot_dtype {self.slot_dtype!r} is not known; use None or one of {', '.join(get_args(SlotDtype))}"
            )
        if self.slots == "stack" and self.operator == "auto" and not self.alike:
            raise OptionError(
                "slots='stack' keeps one value for all regions, and operator='auto' chooses for each; name an operator"
            )

    def intervals(self, problem: "Problem") -> IntervalCosts:
        """Return the error of every interval between anchors, where the operator serves all stale steps."""
        return IntervalCosts.build(problem.errors, problem.weights)

    def stale_actions(
        self, problem: "Problem", step: int, anchor: int, spacing: int, length: int
    ) -> tuple[Action, ...]:
        """Return what each region does at a stale step between anchors.

        Args:
            problem: The problem.
            step: The step.
            anchor: The anchor before it.
            spacing: Distance of that to the anchor before; 0 where there is none.
            length: Distance to the anchor after it, or to the end.
        """
        return problem.errors.actions(step, anchor, spacing)

    @abstractmethod
    def solve(self, problem: "Problem") -> Draft:
        """Return the best actions that reach the problem's goal.

        Raises:
            PlanError: If nothing reaches it.
        """


@dataclass(frozen=True, eq=False)
class Problem:
    """The input of every strategy.

    Attributes:
        sensitivity: Measured errors.
        goal: What is asked for.
        strategy: How to search.
        errors: Of reuse and forecasts, under the objective.
        weights: [T], of the steps.
        costs: Of all actions.
        profile: Measured costs, if there are any.
    """

    sensitivity: Sensitivity
    goal: Goal
    strategy: Strategy
    errors: StaleErrors
    weights: Floats
    costs: Costs
    profile: Profile | None = None

    @classmethod
    def read(cls, sensitivity: Sensitivity, goal: Goal, strategy: Strategy, profile: Profile | None) -> "Problem":
        """Take the tables that are needed.

        Raises:
            OptionError: If an option is not known.
            SensitivityError: If a table that is needed was not measured.
            PlanError: If the profile is for another model.
        """
        pruning = strategy.pruning
        if pruning is not None and profile is not None and profile.score not in (None, pruning.score):
            raise OptionError(
                f"the profile measured pruning by {profile.score!r} but the plan is to prune by {pruning.score!r}; "
                "measure it with soda_compile.profile(..., pruning=...) of the same score"
            )
        errors = StaleErrors.read(sensitivity, strategy.operator, strategy.objective, strategy.over_samples)
        weights = sensitivity.step_weights if strategy.step_weights else np.ones(sensitivity.info.steps)
        return cls(sensitivity, goal, strategy, errors, weights, Costs.read(sensitivity, profile), profile)

    @property
    def steps(self) -> int:
        """T."""
        return self.sensitivity.info.steps

    @cached_property
    def intervals(self) -> IntervalCosts:
        """The error of every interval between anchors, as the strategy sees it."""
        return self.strategy.intervals(self)

    @property
    def budget(self) -> float | None:
        """The largest cost of one branch of guidance of a generation; None without a bound on cost."""
        return self.goal.budget(self.costs, self.steps, self.sensitivity.info.calls_per_step)

    @property
    def prune_table(self) -> Floats | None:
        """[T, R, W, 7], the errors of pruning; None without pruning.

        Raises:
            SensitivityError: If they were not measured.
        """
        if self.strategy.pruning is None:
            return None
        strategy, score = self.strategy, f"prune.{self.strategy.pruning.score}"
        table = self.sensitivity.table_over(strategy.over_samples, strategy.objective, score)
        return table.astype(np.float64)

    def restricted(self, order: int) -> "Problem":
        """Return the same with forecasts of at most this order."""
        return replace(self, errors=self.errors.up_to(order))

    def out_of_reach(self, least: float, how: str) -> Exception:
        """Return the error that names the ``least`` cost, which is reached in the way ``how``."""
        return self.goal.out_of_reach(self.costs, self.steps, self.sensitivity.info.calls_per_step, least, how)
