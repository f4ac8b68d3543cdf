"""The menu of the unified strategy: what a stale region can do, with the error and the cost of each."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from soda_compile.planner.costs import Costs
from soda_compile.planner.stale_errors import Floats, StaleErrors
from soda_compile.plans.actions import COMPUTE, PRUNE_RATES, Action, prune
from soda_compile.plans.sensitivity import Sensitivity

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Option:
    """One action as a stale region's choice.

    Attributes:
        action: what is done.
        errors: [T, S or 1, W, R] float64, its weighted error at [last computed step, spacing, age-1, region], with
            S = W + 2; infinite where it cannot be done or was not measured.
        costs: [R] float64, what it costs, as a share of computing everything at every step.
    """

    action: Action
    errors: Floats
    costs: Floats


@dataclass(frozen=True, eq=False)
class RegionSchedules:
    """One action for every region and step, with what they cost and how far they are off.

    Attributes:
        actions: indexed [region][step].
        errors: [R] float64, summed over steps.
        costs: [R] float64, summed over steps; what each call costs in any case is left out.
    """

    actions: tuple[tuple[Action, ...], ...]
    errors: Floats
    costs: Floats


@dataclass(frozen=True, eq=False)
class Choices:
    """All options, and what computing costs.

    Attributes:
        options: what a stale region chooses from.
        compute: [R] float64, the cost of computing at one step, as a share of computing everything at every step.
        compute_errors: [T, S, W, R] float64, the weighted error of computing between anchors, laid out as in `Option`;
            infinite where the error of a stale value is not measured.
        steps: T.
    """

    options: tuple[Option, ...]
    compute: Floats
    compute_errors: Floats
    steps: int

    @classmethod
    def read(
        cls,
        sensitivity: Sensitivity,
        errors: StaleErrors,
        weights: Floats,
        costs: Costs,
        prune_table: Floats | None,
        inherited: float,
    ) -> "Choices":
        """Lay out the tables.

        A rate is offered only where pruning is both faster than computing and better than every other stale choice.

        Args:
            sensitivity: says how many steps and regions there are.
            errors: of reuse and forecast.
            weights: [T], of the steps.
            costs: of all actions.
            prune_table: [T, R, W, 7], errors of pruning at [step, region, age-1, rate]; None without pruning.
            inherited: share of a stale value's error that remains in what is computed between anchors.
        """
        steps = sensitivity.info.steps
        scale = 1.0 / (steps * costs.full)
        options = [
            Option(action, values, costs.column(action) * scale)
            for action, values in zip(errors.menu, _stale(errors, weights), strict=True)
        ]
        least = np.minimum.reduce([option.errors for option in options])
        measured = np.isfinite(least)
        anchor, age = np.ogrid[:steps, 1 : errors.width + 1]
        step = np.minimum(anchor + age, steps - 1)
        for index, rate in enumerate(PRUNE_RATES if prune_table is not None else ()):
            assert prune_table is not None
            cost = costs.column(prune(rate))
            values = (prune_table[step, :, age - 1, index] * weights[step][..., None])[:, None]
            offered = measured & (values < least) & (cost < costs.column(COMPUTE))
            values = np.where(offered, (1 - inherited) * values + inherited * np.where(measured, least, 0.0), np.inf)
            options.append(Option(prune(rate), values, np.where(np.isfinite(cost), cost, 0.0) * scale))
        compute_errors = np.where(measured, inherited * np.where(measured, least, 0.0), np.inf)
        return cls(tuple(options), costs.column(COMPUTE) * scale, compute_errors, steps)

    def menus(self) -> tuple["Choices", ...]:
        """Return this menu, and where it offers pruning the same without it."""
        others = tuple(option for option in self.options if option.action.kind != "prune")
        return (self,) if len(others) == len(self.options) else (self, replace(self, options=others))

    def with_compute(self) -> "Choices":
        """Return the same menu with computing as one more stale choice."""
        return replace(self, options=(*self.options, Option(COMPUTE, self.compute_errors, self.compute)))

    def cheapest(self, error_weight: float, cost_weight: float) -> Floats:
        """Return [T, S, W, R], the least weighted sum of error and cost that any option has."""
        best: Floats | None = None
        for option in sorted(self.options, key=lambda option: option.errors.size):  # those without a spacing are small
            value = error_weight * option.errors + cost_weight * option.costs
            best = value if best is None else np.minimum(best, value)
        assert best is not None
        return best

    def rows(
        self, computed: Mask, anchors: tuple[int, ...], error_weight: float, cost_weight: float
    ) -> RegionSchedules:
        """Return the best choice at every stale step.

        Args:
            computed: [R, T], the steps at which each region computes, the first among them, at most W + 1 apart.
            anchors: the steps at which all compute, from fresh inputs.
            error_weight: weight of errors.
            cost_weight: weight of costs.
        """
        last, spacing = history(computed)
        shape = np.broadcast_shapes(*(option.errors.shape for option in self.options))
        age = np.clip(np.arange(self.steps) - last, 1, shape[2])  # it is larger at computed steps only
        region = np.arange(len(computed))[:, None]
        errors = np.stack([np.broadcast_to(o.errors, shape)[last, spacing, age - 1, region] for o in self.options])
        costs = np.stack([np.broadcast_to(o.costs[:, None], computed.shape) for o in self.options])
        chosen = (error_weight * errors + cost_weight * costs).argmin(axis=0)[None]
        between = np.isin(np.arange(self.steps), anchors, invert=True)
        inherited = np.where(between, self.compute_errors[last, spacing, age - 1, region], 0.0)
        error = np.where(computed, inherited, np.take_along_axis(errors, chosen, axis=0)[0])
        cost = np.where(computed, self.compute[:, None], np.take_along_axis(costs, chosen, axis=0)[0])
        menu = np.array([option.action for option in self.options] + [COMPUTE], dtype=object)
        actions = menu[np.where(computed, len(self.options), chosen[0])]
        return RegionSchedules(tuple(map(tuple, actions)), error.sum(axis=1), cost.sum(axis=1))


def _stale(errors: StaleErrors, weights: Floats) -> Iterator[Floats]:
    """Yield for each action of `errors` the weighted errors [T, S, W, R] as in `Option`."""
    steps, width = len(weights), errors.width
    anchor, age = np.ogrid[:steps, 1 : width + 1]
    spacing = np.arange(width + 2)[:, None]
    step, inside = np.minimum(anchor + age, steps - 1), anchor + age < steps
    for index, table in enumerate(errors.tables):
        allowed = errors.runs(index, anchor[..., None], spacing[None])
        values = table[step[:, None], :, age[:, None] - 1, np.maximum(spacing, 1)[None] - 1]
        measured = (inside[:, None] & allowed)[..., None] & np.isfinite(values)
        yield np.where(measured, values * weights[step][:, None, :, None], np.inf)


def history(computed: Mask) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the last computed step before each step, and its distance to the one before that (0 without one).

    Args:
        computed: [R, T]; the first step computes.

    Returns:
        Two arrays [R, T]; at step 0, and where the distance is longer than any, they have no meaning.
    """
    regions, steps = computed.shape
    last = np.zeros((regions, steps), dtype=np.int64)
    spacing = np.zeros((regions, steps), dtype=np.int64)
    for step in range(1, steps):
        fresh = computed[:, step - 1]
        last[:, step] = np.where(fresh, step - 1, last[:, step - 1])
        moved = np.where(step > 1, step - 1 - last[:, step - 1], 0)
        spacing[:, step] = np.where(fresh, moved, spacing[:, step - 1])
    return last, spacing
