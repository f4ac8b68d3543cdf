"""The unified strategy: anchors, and between them a choice for every region and step, under one budget.

Two problems are solved by a Lagrange multiplier on the cost (`find_edge`), each exactly on the convex hull of
(cost, error):

1. The anchors, where every region computes, by dynamic programming. Inside an interval every stale region takes its
   best option, computing among them. Computing there helps no later step: history is counted from the anchors, so
   that it is the same for all regions.
2. The rows. With the anchors fixed, regions are independent, and a dynamic program for each finds where else it
   computes and what it does at all other steps. Here history is that of the region itself, extra computed steps
   included, as it is at run time.

Only at anchors are a region's inputs fresh. What is computed or pruned in between inherits part of the error that its
value would have if it were stale, because the regions before it are stale: `Choices.compute_errors`.

What the multiplier leaves unspent (the duality gap: at most the difference between two neighbouring solutions, which
differ in few regions) goes to the regions that can still use it. The result names the bound that no plan with these
anchors can beat.

Because of that gap a larger menu can end in a worse plan. So whatever the menu with pruning finds is compared with
what the menu without it finds, and the better one is kept: to allow pruning never costs accuracy.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from soda_compile.planner.anchors import IntervalCosts, Schedules
from soda_compile.planner.choices import Choices, Mask, RegionSchedules
from soda_compile.planner.computed_steps import best_computed, interval_table
from soda_compile.planner.multiplier import Edge, Outcome, find_edge

Anchors = tuple[int, ...]


@dataclass(frozen=True)
class Limit:
    """A bound on cost or on error; exactly one of the two is not None.

    Attributes:
        budget: the regions' costs, as a share of computing everything at every step.
        max_error: the summed error.
    """

    budget: float | None = None
    max_error: float | None = None

    def is_cheap(self, outcome: Outcome[Any]) -> bool:
        """Return whether a solution lies on the cheap side of the limit."""
        if self.budget is not None:
            return outcome.cost <= self.budget * (1 + 1e-12)
        assert self.max_error is not None
        return outcome.error > self.max_error

    def reached(self, outcome: Outcome[Any]) -> bool:
        """Return whether a solution keeps the limit."""
        return self.is_cheap(outcome) == (self.budget is not None)

    def best(self, edge: Edge[RegionSchedules]) -> RegionSchedules:
        """Return the best mixture, region by region, of an edge's two ends, of which one keeps the limit."""
        ends = (edge.cheap, edge.accurate) if self.budget is not None else (edge.accurate, edge.cheap)
        start, other = (end.value for end in ends)
        rows = list(start.actions)
        errors, costs = start.errors.copy(), start.costs.copy()
        for region in np.argsort(-np.abs(other.costs - start.costs), kind="stable"):
            if (other.costs[region], other.errors[region]) == (costs[region], errors[region]):
                continue
            trial_errors, trial_costs = errors.copy(), costs.copy()
            trial_errors[region], trial_costs[region] = other.errors[region], other.costs[region]
            if self.reached(Outcome(float(trial_costs.sum()), float(trial_errors.sum()), None)):
                rows[region], errors, costs = other.actions[region], trial_errors, trial_costs
        return RegionSchedules(tuple(rows), errors, costs)

    def rank(self, rows: RegionSchedules) -> tuple[float, float]:
        """Return a key by which better results come first."""
        error, cost = float(rows.errors.sum()), float(rows.costs.sum())
        return (error, cost) if self.budget is not None else (cost, error)


@dataclass(frozen=True, eq=False)
class Solution:
    """A plan's rows.

    Attributes:
        rows: one action for every region and step.
        anchors: the steps at which all were made to compute.
        multiplier: error saved for each unit of cost, at the limit; the unit is the cost of computing everything.
        bound: with these anchors no plan within the budget has a smaller error; None for a limit on error.
        reached: whether the limit is kept; otherwise the rows come as near as any.
    """

    rows: RegionSchedules
    anchors: Anchors
    multiplier: float
    bound: float | None
    reached: bool


def solve_unified(choices: Choices, limit: Limit, count: int | None, candidates: Iterable[Anchors] = ()) -> Solution:
    """Return the best plan that keeps the limit.

    Args:
        choices: the menu.
        limit: what to keep.
        count: the number of anchors; None for any.
        candidates: further anchors to try, beside those that the multiplier finds.
    """
    menus = choices.menus()
    edges = [find_edge(functools.partial(_anchors, menu, count), limit.is_cheap) for menu in menus]
    anchors = dict.fromkeys((*(end.value for edge in edges for end in (edge.cheap, edge.accurate)), *candidates))
    return min((_best_of(menus, limit, each) for each in anchors), key=functools.partial(_rank, limit))


def _rank(limit: Limit, solution: Solution) -> tuple[bool, float, float]:
    """Return a key by which better results come first."""
    return (not solution.reached, *limit.rank(solution.rows))


def _best_of(menus: Sequence[Choices], limit: Limit, anchors: Anchors) -> Solution:
    """Return the best that any menu gives with these anchors; the bound is the first menu's, which holds all others."""
    found = [_with_anchors(menu, limit, anchors) for menu in menus]
    return replace(min(found, key=functools.partial(_rank, limit)), bound=found[0].bound)


def _with_anchors(choices: Choices, limit: Limit, anchors: Anchors) -> Solution:
    edge = find_edge(functools.partial(_rows, choices, anchors), limit.is_cheap)
    bound = None if limit.budget is None else edge.bound(limit.budget)
    nearest = edge.cheap if limit.budget is not None else edge.accurate
    if not limit.reached(nearest):
        return Solution(nearest.value, anchors, edge.multiplier, None, False)
    return Solution(limit.best(edge), anchors, edge.multiplier, bound, True)


def _anchors(choices: Choices, count: int | None, error_weight: float, cost_weight: float) -> Outcome[Anchors]:
    """Return the best anchors under these weights; history counts from the anchors."""
    menu = choices.with_compute()
    table = interval_table(menu.cheapest(error_weight, cost_weight).sum(axis=3, keepdims=True))
    if count is None:
        computed = best_computed(
            table, np.zeros_like(table[..., 1:]), np.array([cost_weight * choices.compute.sum()]), (0,)
        )
    else:
        computed = np.zeros((1, choices.steps), dtype=bool)
        computed[0, list(Schedules.solve(IntervalCosts(table[0])).anchors(count))] = True
    everywhere: Mask = np.broadcast_to(computed, (len(choices.compute), choices.steps))
    anchors = tuple(map(int, np.flatnonzero(computed[0])))
    rows = menu.rows(everywhere, anchors, error_weight, cost_weight)
    return Outcome(float(rows.costs.sum()), float(rows.errors.sum()), anchors)


def _rows(choices: Choices, anchors: Anchors, error_weight: float, cost_weight: float) -> Outcome[RegionSchedules]:
    """Return the best rows with these anchors under these weights; history is that of each region."""
    table = interval_table(choices.cheapest(error_weight, cost_weight))
    between = np.full_like(table[..., 1:], np.inf)
    between[..., :-1] = error_weight * np.moveaxis(choices.compute_errors, 3, 0)
    computed = best_computed(table, between, cost_weight * choices.compute, anchors)
    rows = choices.rows(computed, anchors, error_weight, cost_weight)
    return Outcome(float(rows.costs.sum()), float(rows.errors.sum()), rows)
