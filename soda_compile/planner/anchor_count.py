"""Number of anchors: the one asked for, or the best that reaches the goal."""

import math
from collections.abc import Callable, Sequence

from soda_compile.errors import PlanError
from soda_compile.planner.anchors import Schedules
from soda_compile.planner.problem import Actions, Draft, Problem
from soda_compile.plans.actions import COMPUTE, Action

Anchors = tuple[int, ...]


def best_anchors(problem: Problem) -> Anchors:
    """Return the best anchors that reach the goal, all stale regions doing what the operator says.

    Raises:
        PlanError: If there are none.
    """
    schedules = Schedules.solve(problem.intervals)
    return schedules.anchors(_count(problem, schedules))


def draft(problem: Problem, anchors: Anchors) -> Draft:
    """Return the plan with these anchors, where the operator serves all other steps."""
    total = problem.intervals.total(anchors)
    return Draft(anchor_actions(problem, anchors), total if math.isfinite(total) else None)


def anchor_actions(problem: Problem, anchors: Anchors) -> Actions:
    """Return the actions under these anchors, [region][step]."""
    everywhere = (COMPUTE,) * len(problem.sensitivity.info.regions)
    columns: list[tuple[Action, ...]] = []
    spacing = 0
    for anchor, end in zip(anchors, (*anchors[1:], problem.steps), strict=True):
        columns.append(everywhere)
        columns += [
            problem.strategy.stale_actions(problem, step, anchor, spacing, end - anchor)
            for step in range(anchor + 1, end)
        ]
        spacing = end - anchor
    return tuple(zip(*columns, strict=True))


def affordable(problem: Problem, feasible: Sequence[int], anchors_of: Callable[[int], Anchors]) -> int:
    """Return the largest feasible number of anchors within the budget.

    Raises:
        PlanError: If there is none.
    """
    budget, costs, steps = problem.budget, problem.costs, problem.steps
    assert budget is not None
    for count in sorted(feasible, reverse=True):
        least = steps * costs.base + count * float(costs.column(COMPUTE).sum())
        if count < steps and least > budget:
            continue  # too much even if everything else were free
        if costs.of(anchor_actions(problem, anchors_of(count))) <= budget:
            return count
    fewest = min(feasible)
    hint = f" or calibrate with a max_interval above {problem.sensitivity.info.max_interval}" if fewest > 1 else ""
    cheapest = costs.of(anchor_actions(problem, anchors_of(fewest)))
    raise problem.out_of_reach(cheapest, f"with {fewest} of {steps} steps as anchors; ask for less{hint}")


def _count(problem: Problem, schedules: Schedules) -> int:
    goal = problem.goal
    feasible = [count for count, error in enumerate(schedules.errors) if math.isfinite(error)]
    if goal.anchors is not None:
        if goal.anchors not in feasible:
            raise _no_schedule(problem, goal.anchors, feasible)
        return int(goal.anchors)
    if goal.max_error is not None:
        return min(count for count in feasible if schedules.errors[count] <= goal.max_error)
    return affordable(problem, feasible, schedules.anchors)


def _no_schedule(problem: Problem, anchors: int, feasible: Sequence[int]) -> PlanError:
    steps, width = problem.steps, problem.sensitivity.info.max_interval
    interval = -(-steps // anchors)
    more = next(count for count in feasible if count > anchors)
    if interval > width:
        return PlanError(
            f"{anchors} anchors over {steps} steps need an interval of {interval} steps, but the sensitivity holds up "
            f"to {width}: calibrate with max_interval >= {interval}, or use {more} anchors"
        )
    return PlanError(
        f"every schedule of {anchors} anchors over {steps} steps needs an error of operator "
        f"{problem.strategy.operator!r} that was not measured: use {more} anchors, or calibrate with a max_interval "
        f"above {width}"
    )
