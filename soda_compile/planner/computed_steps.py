"""At which steps each region computes: dynamic programming over steps, for many regions at once."""

import numpy as np
from numpy.typing import NDArray

from soda_compile.planner.choices import Mask
from soda_compile.planner.stale_errors import Floats


def interval_table(stale: Floats) -> Floats:
    """Sum stale steps to intervals.

    Args:
        stale: [T, S, W, G], the price of a stale step at [last computed step, spacing, age-1], of G groups.

    Returns:
        [G, T, S, W + 2], the price of the stale steps of an interval at [start, spacing, length].
    """
    steps, spacings, width, groups = stale.shape
    table = np.full((groups, steps, spacings, width + 2), np.inf)
    table[..., 1] = 0.0
    table[..., 2:] = np.moveaxis(np.cumsum(stale, axis=2), 3, 0)
    return table


def best_computed(table: Floats, between: Floats, price: Floats, forced: tuple[int, ...]) -> Mask:
    """Return the cheapest steps to compute at, for each group.

    The state is the step that computes and its distance to the one before, as in `Schedules`, but the number of
    computed steps is free and each has a price.

    Args:
        table: [G, T, S, L], the price of the stale steps of an interval at [start, spacing, length].
        between: [G, T, S, L-1], what computing after an interval at [start, spacing, length-1] costs on top where it
            is not forced.
        price: [G], the price of computing.
        forced: steps at which every group must compute; 0 is one.

    Returns:
        [G, T], whether the group computes; rows without a finite price have no meaning.
    """
    groups, steps, spacings, _ = table.shape
    best = np.full((groups, steps, spacings), np.inf)
    best[:, 0, 0] = 0.0
    parents = np.zeros((groups, steps, spacings), dtype=np.int64)
    end = np.full((3, groups), np.inf)  # price, last step, its spacing
    stops = [*forced[1:], steps]
    for step in range(steps):
        longest = min(spacings - 1, next(stop for stop in stops if stop > step) - step)
        prices = table[:, step, :, 1 : longest + 1] + between[:, step, :, :longest]
        if step + longest in stops:
            prices[..., -1] = table[:, step, :, longest]
        reach = best[:, step, :, None] + prices
        value, parent = reach.min(axis=1), reach.argmin(axis=1)
        for length in range(1, longest + 1):
            if step + length < steps:
                best[:, step + length, length] = value[:, length - 1] + price
                parents[:, step + length, length] = parent[:, length - 1]
            else:
                arrival = np.stack([value[:, -1], np.full(groups, step), parent[:, -1]])
                end = np.where(arrival[0] < end[0], arrival, end)
    end[1:][~np.isfinite(end[1:])] = 0
    return _trace(parents, end[1].astype(np.int64), end[2].astype(np.int64))


def _trace(parents: NDArray[np.int64], step: NDArray[np.int64], spacing: NDArray[np.int64]) -> Mask:
    """Follow the parents from the last computed step to the first."""
    groups = np.arange(len(step))
    computed = np.zeros(parents.shape[:2], dtype=bool)
    computed[:, 0] = True
    while step.any():
        computed[groups, step] = True
        step, spacing = step - spacing, parents[groups, step, spacing]
    return computed
