"""From sensitivity data to a plan."""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np

from soda_compile.errors import OptionError, PlanError
from soda_compile.planner.anchor_count import Anchors, draft
from soda_compile.planner.costs import Costs
from soda_compile.planner.goal import Goal
from soda_compile.planner.problem import Actions, Draft, Problem, Strategy
from soda_compile.planner.strategies import AnchorSchedule, FixedInterval
from soda_compile.planner.watch import watched_region
from soda_compile.plans.plan import Plan
from soda_compile.plans.plan_file import Scalar, SlotDtype, Slots
from soda_compile.plans.profile import Profile
from soda_compile.plans.sensitivity import Metric, Sensitivity


def plan(
    sensitivity: Sensitivity,
    goal: Goal | None = None,
    strategy: Strategy | None = None,
    *,
    profile: Profile | None = None,
    **numbers: Any,
) -> Plan:
    """Choose for every region and step an action, so that the goal is reached with the least error.

    ``plan(sensitivity, speedup=2)`` is short for ``plan(sensitivity, Goal(speedup=2), AnchorSchedule())``.

    Args:
        sensitivity: Measured errors.
        goal: Numbers to reach.
        strategy: How to search, such as ``Unified(pruning=Pruning("drift"))``; by default ``AnchorSchedule()``.
        profile: Times measured on the device at hand by ``soda_compile.profile``; without one, costs are FLOPs.
        **numbers: The fields of ``Goal``, instead of one.

    Raises:
        OptionError: If options contradict each other or are unknown.
        PlanError: If no plan reaches the goal, or the profile is for another model.
        SensitivityError: If a table that is needed was not measured.
    """
    strategy = strategy or AnchorSchedule()
    goal = _goal(goal, numbers)
    strategy.check(goal, sensitivity.info.steps)
    problem = Problem.read(sensitivity, goal, strategy, profile)
    return _finish(problem, _within_memory(problem))


def plans_at(
    sensitivity: Sensitivity, goal: Goal, strategy: Strategy, like: Plan, profile: Profile | None = None
) -> Callable[[Anchors], Plan | None]:
    """Return what makes a plan like another one for other anchors, between which the same strategy decides.

    It gives None where an interval between the anchors was not measured, and for plans that this strategy makes of more
    than anchors. The plans have no ``predicted_error``, as none was minimised.

    Args:
        sensitivity: What ``like`` was made of.
        goal: For what.
        strategy: By what.
        like: The plan.
        profile: As for ``plan``.
    """
    order = max(action.order for row in like.actions for action in row)
    problem = Problem.read(sensitivity, goal, strategy, profile).restricted(order)
    by_anchors_alone = draft(problem, like.anchors).actions == like.actions

    def at(anchors: Anchors) -> Plan | None:
        found = draft(problem, anchors)
        if found.error is None or not by_anchors_alone:
            return None
        method: dict[str, Scalar] = {"moved_anchors": len(set(anchors) - set(like.anchors))}
        return _finish(problem, replace(found, error=None, method=method, slots=like.slots, slot_dtype=like.slot_dtype))

    return at


def fixed_interval_plan(
    sensitivity: Sensitivity,
    *,
    operator: str = "forecast1",
    objective: Metric = "residual",
    step_weights: bool = False,
    profile: Profile | None = None,
    **numbers: Any,
) -> Plan:
    """Spread the anchors evenly: ``plan`` with the strategy ``FixedInterval``."""
    strategy = FixedInterval(operator=operator, objective=objective, step_weights=step_weights)
    return plan(sensitivity, strategy=strategy, profile=profile, **numbers)


def flop_ratio(sensitivity: Sensitivity, actions: Actions) -> float:
    """Return FLOPs of the plan / FLOPs of computing everything; what a forecast itself takes is left out.

    Args:
        sensitivity: Has the FLOPs of each region.
        actions: Indexed [region][step].
    """
    return Costs.read(sensitivity).of(actions) / (sensitivity.total_flops * sensitivity.info.steps)


def slot_memory_bytes(
    profile: Profile, actions: Actions, slots: Slots = "region", slot_dtype: SlotDtype | None = None
) -> int:
    """Return the memory of kept values of one branch of guidance: one copy for each value an action reads at once.

    Args:
        profile: Has the sizes.
        actions: Indexed [region][step].
        slots: What is kept.
        slot_dtype: What it is rounded to; None for no rounding.

    Raises:
        PlanError: If the model cannot keep one value for all regions, or the profile does not know a size.
    """
    if slot_dtype is not None and slot_dtype not in profile.rounded_bytes:
        raise PlanError(f"the profile has no sizes for slot_dtype={slot_dtype!r}, as older ones have not; profile anew")
    copies = [max(action.history for action in row) for row in actions]
    if slots == "region":
        sizes = profile.memory_bytes if slot_dtype is None else profile.rounded_bytes[slot_dtype]
        return round(float(sizes @ np.array(copies)))
    if profile.stack_bytes is None:
        raise PlanError(
            'slots is "stack", but the profile has no size for it: the model does work between its blocks that stale '
            'steps would have to do, or the profile is of an older version; take slots="region", or profile anew'
        )
    size = profile.stack_bytes if slot_dtype is None else profile.rounded_stack_bytes[slot_dtype]
    return round(size * max(copies))


def _goal(goal: Goal | None, numbers: dict[str, Any]) -> Goal:
    names = [field.name for field in fields(Goal)]
    unknown = [name for name in numbers if name not in names]
    if unknown:
        raise OptionError(
            f"plan takes no {unknown[0]}={numbers[unknown[0]]!r}; a goal has {', '.join(names)}, and how to search is "
            "set in a strategy, such as strategy=soda_compile.Unified(pruning=...)"
        )
    if goal is not None and numbers:
        raise OptionError(f"give {goal} or {', '.join(numbers)}, not both")
    return goal or Goal(**numbers)


def _within_memory(problem: Problem) -> Draft:
    """Return what the strategy finds with what is likely to be closest of what fits."""
    most, profile, strategy = problem.goal.memory_bytes, problem.profile, problem.strategy
    if most is None:
        return replace(strategy.solve(problem), slots=strategy.slots, slot_dtype=strategy.slot_dtype)
    if profile is None:
        raise OptionError("memory_bytes needs to know the regions' sizes; pass profile=soda_compile.profile(...) too")
    least = math.inf
    solved: dict[int, Draft] = {}
    for slots, slot_dtype, order in _by_closeness(problem, profile):
        if order not in solved:
            solved[order] = strategy.solve(problem.restricted(order))
        found = solved[order]
        if slots == "stack" and len(set(found.actions)) > 1:
            continue
        least = min(least, slot_memory_bytes(profile, found.actions, slots, slot_dtype))
        if least <= most:
            return replace(found, slots=slots, slot_dtype=slot_dtype)
    raise PlanError(f"memory_bytes is {most}, but even a plan without forecasts keeps {least} bytes")


DTYPES: dict[Slots, tuple[SlotDtype | None, ...]] = {
    "region": (None, "bfloat16", "int8"),
    "stack": (None, "bfloat16", "float8"),
}
"""What kept values are rounded to where memory asks for it, what hurts least first (benchmarks/results/closeness.md).

Rows of what all regions add have outliers, which cost the other elements of int8 their precision.
"""


def _by_closeness(problem: Problem, profile: Profile) -> list[tuple[Slots, SlotDtype | None, int]]:
    """Return what can be kept, what it is rounded to and the highest order of forecasts: what hurts least comes first.

    Forecasts of what all regions add are closer than plain reuse of each: .94 to 1.29 of the default's error against
    1.56 to 1.62 on the digits model (benchmarks/results/closeness.md). Rounding costs less than an order.
    """
    strategy = problem.strategy
    orders = [action.order for action in reversed(problem.errors.menu)]
    forecasts, reuse = [order for order in orders if order], [0]
    kinds: tuple[Slots, ...] = ("stack",) if strategy.slots == "stack" else ("region", "stack")
    if profile.stack_bytes is None:
        kinds = tuple(kind for kind in kinds if kind == strategy.slots)
    return [
        (kind, slot_dtype, order)
        for part in (forecasts, reuse)
        for kind in kinds
        for order in part
        for slot_dtype in ((strategy.slot_dtype,) if strategy.slot_dtype else _dtypes(profile, kind))
    ]


def _dtypes(profile: Profile, kind: Slots) -> list[SlotDtype | None]:
    return [each for each in DTYPES[kind] if each is None or each in profile.rounded_bytes]


def _finish(problem: Problem, draft: Draft) -> Plan:
    """Return the plan, with what it was made for and how."""
    info, goal, strategy, actions = problem.sensitivity.info, problem.goal, problem.strategy, draft.actions
    method: dict[str, Scalar] = {
        "planner": strategy.name,
        "operator": strategy.operator,
        "objective": strategy.objective,
        "step_weights": strategy.step_weights,
        "speedup": goal.speedup,
        "samples": info.samples,
        **draft.method,
    }
    if strategy.over_samples != "mean":
        method["over_samples"] = strategy.over_samples
    method |= {name: value for name, value in goal.numbers().items() if name in (*goal.budgets, "max_error")}
    if info.derived_from is not None:
        method["derived_from"] = info.derived_from
    if strategy.pruning is not None:
        method["score"] = strategy.pruning.score
    if problem.profile is not None:
        total_us = problem.costs.of(actions)
        method |= {
            "device": problem.profile.device,
            "latency_predicted_ms": total_us * info.calls_per_step / 1000,
            "speedup_predicted": info.steps * problem.costs.full / total_us,
        }
    made = Plan(
        fingerprint=info.fingerprint,
        regions=info.regions,
        actions=actions,
        timesteps=info.timesteps,
        timestep_input=info.timestep_input,
        scheduler=info.scheduler,
        scheduler_digest=info.scheduler_digest,
        guidance=info.guidance,
        calls_per_step=info.calls_per_step,
        flop_ratio=flop_ratio(problem.sensitivity, actions),
        predicted_error=draft.error,
        pruning=strategy.pruning if any(action.kind == "prune" for row in actions for action in row) else None,
    )
    done = replace(
        made,
        method=tuple({**method, "anchors": len(made.anchors)}.items()),
        slots=draft.slots,
        slot_dtype=draft.slot_dtype,
    )
    unwatched = draft.slots == "stack" or draft.slot_dtype is not None
    return done if unwatched else replace(done, watched=watched_region(problem.sensitivity, made))
