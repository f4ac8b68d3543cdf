"""The ways to plan: anchors alone, the unified strategy, and the unified strategy as the paper gives it."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from soda_compile.errors import PlanError
from soda_compile.planner.anchors import IntervalCosts, Schedules
from soda_compile.planner.choices import Choices
from soda_compile.planner.paper import PaperStrategy
from soda_compile.planner.problem import Actions, Draft, Problem
from soda_compile.planner.unified import Anchors, Goal, Solution, solve_unified
from soda_compile.plans.actions import COMPUTE, Action
from soda_compile.plans.plan_file import Scalar


def anchors_alone(problem: Problem) -> Draft:
    """The best anchors; every stale region does what the operator says.

    Raises:
        PlanError: no schedule reaches the target.
    """
    intervals = IntervalCosts.build(problem.errors, problem.weights)
    schedules = Schedules.solve(intervals)
    return _draft(problem, intervals, schedules.anchors(_count(problem, schedules)))


def evenly(problem: Problem) -> Draft:
    """Anchors at a fixed interval.

    Raises:
        PlanError: no interval reaches the target.
    """

    def even(count: int) -> Anchors:
        return tuple(index * problem.steps // count for index in range(count))

    count = problem.target.anchors or _affordable(problem, range(1, problem.steps + 1), even)
    return _draft(problem, IntervalCosts.build(problem.errors, problem.weights), even(count))


def unified(problem: Problem) -> Draft:
    """Anchors, and a choice of its own for every region and step between them; see `solve_unified`.

    Raises:
        PlanError: nothing reaches the target.
    """
    costs, steps, budget = problem.costs, problem.steps, problem.budget
    total = steps * costs.full
    if budget is not None and budget >= total:
        return Draft(((COMPUTE,) * steps,) * len(problem.sensitivity.info.regions), 0.0)
    schedules = Schedules.solve(IntervalCosts.build(problem.errors, problem.weights))
    try:
        candidates = [schedules.anchors(_count(problem, schedules))]
    except PlanError:
        if problem.target.anchors is not None:
            raise
        candidates = []  # reuse alone may still be cheap enough
    choices = Choices.read(
        problem.sensitivity, problem.errors, problem.weights, costs, problem.prune_table, problem.inherited
    )
    base = steps * costs.base / total
    goal = Goal(None if budget is None else budget / total - base, problem.target.max_error)
    solution = solve_unified(choices, goal, problem.target.anchors, candidates)
    if not solution.reached:
        least = (base + float(solution.rows.costs.sum())) * total
        raise problem.target.out_of_reach(
            costs,
            steps,
            problem.sensitivity.info.calls_per_step,
            least,
            f"with {len(solution.anchors)} of {steps} steps as anchors; ask for less, or calibrate with a max_interval "
            f"above {problem.sensitivity.info.max_interval}",
        )
    error = float(solution.rows.errors.sum())
    return Draft(solution.rows.actions, error, _told(problem, solution))


def _told(problem: Problem, solution: Solution) -> dict[str, Scalar]:
    return {
        "inherited_error": problem.inherited,
        "error_bound": solution.bound,
        "multiplier": solution.multiplier,
    }


def paper_unified(problem: Problem, slope: float) -> Draft:
    """The paper's anchors, and between them pruning or reuse by its rule; see `PaperStrategy`.

    Args:
        problem: with cosine errors of reuse, a number of anchors and a budget.
        slope: lambda of the paper.

    Raises:
        PlanError: the anchors alone cost more than the budget.
    """
    intervals = IntervalCosts.build(problem.errors, problem.weights)
    schedules = Schedules.solve(intervals)
    anchors = schedules.anchors(_count(problem, schedules))
    costs, steps, budget, pruned = problem.costs, problem.steps, problem.budget, problem.prune_table
    assert budget is not None
    assert pruned is not None
    reuse = problem.sensitivity.table("cosine", "reuse").astype(np.float64)
    found = PaperStrategy.read(reuse, pruned, anchors, costs, slope).within(budget - steps * costs.base)
    if found is None:
        least = costs.of(_anchor_actions(problem, anchors))
        how = f"with {len(anchors)} of {steps} steps as anchors; ask for less or for fewer anchors"
        raise problem.target.out_of_reach(costs, steps, problem.sensitivity.info.calls_per_step, least, how)
    rows, beta = found
    return Draft(rows.actions, float(rows.errors.sum()), {"lambda": slope, "beta": beta})


def _count(problem: Problem, schedules: Schedules) -> int:
    """The number of anchors asked for, or the best that reaches the target.

    Raises:
        PlanError: there is none.
    """
    target = problem.target
    feasible = [count for count, error in enumerate(schedules.errors) if math.isfinite(error)]
    if target.anchors is not None:
        if target.anchors not in feasible:
            raise _no_schedule(problem, target.anchors, feasible)
        return int(target.anchors)
    if target.max_error is not None:
        return min(count for count in feasible if schedules.errors[count] <= target.max_error)
    return _affordable(problem, feasible, schedules.anchors)


def _affordable(problem: Problem, feasible: Sequence[int], anchors_of: Callable[[int], Anchors]) -> int:
    """The largest feasible number of anchors within the budget.

    Raises:
        PlanError: there is none.
    """
    budget, costs, steps = problem.budget, problem.costs, problem.steps
    assert budget is not None
    for count in sorted(feasible, reverse=True):
        least = steps * costs.base + count * float(costs.column(COMPUTE).sum())
        if count < steps and least > budget:
            continue  # too much even if everything else were free
        if costs.of(_anchor_actions(problem, anchors_of(count))) <= budget:
            return count
    fewest = min(feasible)
    hint = f" or calibrate with a max_interval above {problem.sensitivity.info.max_interval}" if fewest > 1 else ""
    how = f"with {fewest} of {steps} steps as anchors; ask for less{hint}"
    cheapest = costs.of(_anchor_actions(problem, anchors_of(fewest)))
    raise problem.target.out_of_reach(costs, steps, problem.sensitivity.info.calls_per_step, cheapest, how)


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
        f"every schedule of {anchors} anchors over {steps} steps needs an error of operator {problem.operator!r} that "
        f"was not measured: use {more} anchors, or calibrate with a max_interval above {width}"
    )


def _draft(problem: Problem, intervals: IntervalCosts, anchors: Anchors) -> Draft:
    """The plan with these anchors, where the operator serves all other steps."""
    total = intervals.total(anchors)
    return Draft(_anchor_actions(problem, anchors), total if math.isfinite(total) else None)


def _anchor_actions(problem: Problem, anchors: Anchors) -> Actions:
    everywhere = (COMPUTE,) * len(problem.sensitivity.info.regions)
    columns: list[tuple[Action, ...]] = []
    spacing = 0
    for anchor, end in zip(anchors, (*anchors[1:], problem.steps), strict=True):
        columns.append(everywhere)
        columns += [problem.errors.actions(step, anchor, spacing) for step in range(anchor + 1, end)]
        spacing = end - anchor
    return tuple(zip(*columns, strict=True))
