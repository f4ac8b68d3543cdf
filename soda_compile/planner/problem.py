"""One planning problem: what was measured, what it costs, and what is asked for."""

from dataclasses import dataclass, field, replace

import numpy as np

from soda_compile.errors import OptionError
from soda_compile.planner.costs import Costs
from soda_compile.planner.stale_errors import Floats, StaleErrors
from soda_compile.planner.target import Target
from soda_compile.plans.actions import Action
from soda_compile.plans.plan_file import Scalar
from soda_compile.plans.profile import Profile
from soda_compile.plans.pruning import Pruning
from soda_compile.plans.sensitivity import Sensitivity

Actions = tuple[tuple[Action, ...], ...]


@dataclass(frozen=True, eq=False)
class Problem:
    """What every strategy starts from.

    Attributes:
        sensitivity: the measured errors.
        operator: what stale regions do.
        objective: the metric that is summed.
        errors: of reuse and forecast, under the objective.
        weights: [T], of the steps.
        costs: of all actions.
        target: what is asked for.
        pruning: how pruned regions pick their tokens; None without pruning.
        profile: measured costs, if there are any.
        inherited: share of a stale value's error that remains in what is computed between anchors.
    """

    sensitivity: Sensitivity
    operator: str
    objective: str
    errors: StaleErrors
    weights: Floats
    costs: Costs
    target: Target
    pruning: Pruning | None = None
    profile: Profile | None = None
    inherited: float = 0.0

    @classmethod
    def read(
        cls,
        sensitivity: Sensitivity,
        operator: str,
        objective: str,
        step_weights: bool,
        target: Target,
        pruning: Pruning | None = None,
        profile: Profile | None = None,
        inherited: float = 0.0,
    ) -> "Problem":
        """Takes the tables that are needed.

        Raises:
            OptionError: an option is not known.
            SensitivityError: a table that is needed was not measured.
            PlanError: the profile is for another model.
        """
        if not 0 <= inherited <= 1:
            raise OptionError(f"inherited_error is {inherited}; it is a share, from 0 to 1")
        weights = sensitivity.step_weights if step_weights else np.ones(sensitivity.info.steps)
        errors = StaleErrors.read(sensitivity, operator, objective)
        if pruning is not None and profile is not None and profile.score not in (None, pruning.score):
            raise OptionError(
                f"the profile measured pruning by {profile.score!r} but the plan is to prune by {pruning.score!r}; "
                "measure it with soda_compile.profile(..., pruning=...) of the same score"
            )
        costs = Costs.read(sensitivity, profile)
        return cls(sensitivity, operator, objective, errors, weights, costs, target, pruning, profile, inherited)

    @property
    def steps(self) -> int:
        """T."""
        return self.sensitivity.info.steps

    @property
    def budget(self) -> float | None:
        """The largest cost of one stream of a generation, in the unit of the costs; None without a bound on cost."""
        return self.target.budget(self.costs, self.steps, self.sensitivity.info.calls_per_step)

    @property
    def prune_table(self) -> Floats | None:
        """[T, R, W, 7], the errors of pruning; None without pruning.

        Raises:
            SensitivityError: they were not measured.
        """
        if self.pruning is None:
            return None
        return self.sensitivity.table(self.objective, f"prune.{self.pruning.score}").astype(np.float64)

    def restricted(self, order: int) -> "Problem":
        """The same with forecasts of at most this order."""
        return replace(self, errors=self.errors.up_to(order))


@dataclass(frozen=True, eq=False)
class Draft:
    """What a strategy found.

    Attributes:
        actions: indexed [region][step].
        error: the value of the objective; None where an entry was not measured.
        method: what the plan should tell about it.
    """

    actions: Actions
    error: float | None
    method: dict[str, Scalar] = field(default_factory=dict)
