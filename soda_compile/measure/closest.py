"""The closest of several plans for one goal, run on recorded generations, with fitted weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from soda_compile.errors import OptionError, PlanError
from soda_compile.measure.candidates import Candidates, Objective
from soda_compile.measure.fitting import Fit
from soda_compile.measure.planned_run import Compared
from soda_compile.measure.player import playing
from soda_compile.measure.recording import Recording
from soda_compile.planner import AnchorSchedule, FixedInterval, Goal, SearchedSchedule, SimulatedSchedule, Strategy
from soda_compile.planner import plan as make_plan
from soda_compile.planner.make import plans_at
from soda_compile.plans.fitted_weights import MOST_OUTPUTS
from soda_compile.plans.plan import Plan
from soda_compile.plans.profile import Profile
from soda_compile.plans.sensitivity import Sensitivity

MOVING = 8.0
"""Generations' time that moving anchors may take by default."""
APART = 8
"""Mean distance of anchors, in steps, from which on that is the default."""


@dataclass(frozen=True, eq=False)
class Closest:
    """The closest of several plans.

    Attributes:
        plan: The plan, with fitted weights where these bring it closer.
        name: Of the candidate that it is.
        compared: How far each candidate takes the recorded generations, with the weights of the polynomial.
        fit: How its weights were fitted; None where none were, or they bring it no closer.
        unreached: Candidates that cannot reach the goal, and why.
    """

    plan: Plan
    name: str
    compared: Compared
    fit: Fit | None
    unreached: Mapping[str, str]

    def __str__(self) -> str:
        fitted = f"; {self.fit}" if self.fit is not None else ""
        return f"{self.name} of {self.compared}{fitted}"


def closest_plan(
    recording: Recording,
    sensitivity: Sensitivity,
    goal: Goal | None = None,
    *,
    objective: Objective = "mean",
    fit: int = 3,
    moving: float | None = None,
    strategies: Mapping[str, Strategy] | None = None,
    profile: Profile | None = None,
    **numbers: Any,
) -> Closest:
    """Make a plan by each of several strategies, run all on recorded generations, and fit weights for the closest few.

    Of the one that is closest then, single anchors are moved where these are few; weights of the closest of all are
    shifted for the last samples.

    A fixed interval with plain reuse is among them, so that a plan which loses to it on these generations, as a
    forecast may where the sampler adds noise, is not chosen. With few samples the choice is left to chance: take
    sixteen, or more.

    Args:
        recording: Of ``record``.
        sensitivity: Of ``calibrate``; of ``simulate`` for plans by simulated intervals.
        goal: Numbers to reach.
        objective: What shall be small over the samples: the ``mean`` of the last samples' relative errors, or the
            ``worst``, their 90th percentile.
        fit: For how many of the closest plans weights are fitted, see ``soda_compile.fit``; the one that is closest
            then is taken. Fitting takes back more of what one plan gets wrong than of another. 0 for none. Outputs are
            kept for it unless the goal bounds the memory.
        moving: What moving single anchors of the closest plan may take, in generations of the original for each
            recorded one: plans with other anchors are run, and the closer ones kept. 0 for none; by default eight where
            anchors are eight steps or more apart in the mean, as with more anchors it takes as long as all else does.
        strategies: What to try, by name, instead of the built-in ones.
        profile: As for ``plan``.
        **numbers: The fields of ``Goal``, instead of one.

    Raises:
        OptionError: If options contradict each other.
        PlanError: If no plan reaches the goal.
        SensitivityError: If the generations cannot be run again.
    """
    if objective not in get_args(Objective):
        raise OptionError(f"objective is {objective!r}; it can be {' or '.join(map(repr, get_args(Objective)))}")
    if moving is not None and not 0 <= moving < math.inf:
        raise OptionError(f"moving is {moving}; it must be a number of generations, or 0")
    tried = strategies or strategies_for(sensitivity, objective)
    plans: dict[str, Plan] = {}
    unreached: dict[str, str] = {}
    for name, strategy in tried.items():
        try:
            plans[name] = make_plan(sensitivity, goal, strategy, profile=profile, **numbers)
        except PlanError as error:
            unreached[name] = str(error)
    if not plans:
        raise PlanError("; ".join(f"{name}: {reason}" for name, reason in unreached.items()))
    goal = goal or Goal(**numbers)
    outputs = MOST_OUTPUTS if goal.memory_bytes is None else 0  # a profile does not know what these take
    with playing(recording):  # captured once for all
        candidates = Candidates(recording, objective, outputs, plans)
        candidates.fit(candidates.nearest()[:fit])
        name = candidates.closest
        at = plans_at(sensitivity, goal, tried[name], plans[name], profile)
        moved = candidates.move(name, at, _tries(plans[name], moving))
        if moved is not None and fit:
            candidates.fit([moved])
        name = candidates.closest
        best = candidates.refined(name) if fit else None
    nearest = candidates.nearest()[0]
    if best is None or candidates.size(best.after) > candidates.size(candidates.errors[nearest]):
        name, best = nearest, None  # weights are fitted to the mean
    return Closest(best.plan if best else plans[name], name, candidates.compared, best, unreached)


def _tries(plan: Plan, moving: float | None) -> int:
    """Return how many plans with other anchors may be run."""
    if moving is None:
        moving = MOVING if plan.steps >= APART * len(plan.anchors) else 0.0
    return int(moving / (plan.flop_ratio or 1.0))


def strategies_for(sensitivity: Sensitivity, objective: Objective = "mean") -> dict[str, Strategy]:
    """Return the built-in strategies, by name, that a sensitivity has the tables for.

    Those by intervals are tried for the mean and for the worst of samples whatever the objective: made for the worst of
    a few samples, plans came closer in the mean to others too (benchmarks/results/closeness.md).

    Args:
        sensitivity: What was measured.
        objective: What shall be small over the samples.
    """
    found: dict[str, Strategy] = {
        "forecast1": AnchorSchedule(over_samples=objective),
        "forecast2": AnchorSchedule(operator="forecast2", over_samples=objective),
        "reuse": AnchorSchedule(operator="reuse", over_samples=objective),
        "fixed interval, reuse": FixedInterval(operator="reuse", over_samples=objective),
    }
    intervals = sensitivity.intervals
    if intervals is None:
        return found
    made: dict[str, type[SimulatedSchedule]] = {"simulated": SimulatedSchedule}
    if intervals.vectors is not None:
        made["searched"] = SearchedSchedule
    by_interval: dict[str, Strategy] = {name: each() for name, each in made.items()}
    if intervals.worst is not None:
        by_interval |= {f"{name}, worst": each(over_samples="worst") for name, each in made.items()}
    return by_interval | found
