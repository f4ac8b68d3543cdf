"""The best anchor steps: dynamic programming over steps.

This is the dynamic caching schedule (SODA, arXiv 2603.07057), dp[t][i+1] = min over n of E(t, n) + dp[t+n][i], with
one thing added to its state: the spacing to the anchor before, because the error of a forecast depends on it. Where
the error does not depend on it (reuse), this is the paper's recurrence; its t counts down where steps count up.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from soda_compile.planner.stale_errors import Floats, StaleErrors
from soda_compile.plans.operators import OPERATORS


@dataclass(frozen=True)
class IntervalCosts:
    """The error of every possible interval.

    Attributes:
        table: [anchor, spacing, length], float64 with T x (W + 2) x (W + 2) entries: the error summed over the stale
            steps of an interval of `length` that starts at step `anchor`, `spacing` after the anchor before (0: there
            is none). Infinite where it is not measured or reaches past the end.
    """

    table: Floats

    @classmethod
    def build(cls, errors: StaleErrors, weights: Floats) -> "IntervalCosts":
        """Sum over regions and over the stale steps of each interval, each step times its weight [T]."""
        steps, width = len(weights), errors.width
        summed = np.stack([errors.summed(level) for level in range(len(OPERATORS))]) * weights[:, None, None]
        anchor, spacing, age = np.ogrid[:steps, : width + 2, 1 : width + 1]
        step = anchor + age
        level = errors.level(anchor, spacing)
        stale = summed[level, np.minimum(step, steps - 1), age - 1, np.maximum(spacing, 1) - 1]
        stale = np.where((step < steps) & np.isfinite(stale), stale, np.inf)
        table = np.full((steps, width + 2, width + 2), np.inf)
        table[:, :, 1] = 0.0
        table[:, :, 2:] = np.cumsum(stale, axis=2)
        return cls(table)

    def total(self, anchors: tuple[int, ...]) -> float:
        """Return the error of a whole schedule; infinite where an interval is not measured."""
        steps = len(self.table)
        total, spacing = 0.0, 0
        for anchor, end in zip(anchors, (*anchors[1:], steps), strict=True):
            total += self.total_of(anchor, spacing, end - anchor)
            spacing = end - anchor
        return total

    def total_of(self, anchor: int, spacing: int, length: int) -> float:
        """Return the error of one interval; infinite where it is not measured."""
        longest = self.table.shape[2] - 1
        return float(self.table[anchor, spacing, length]) if max(spacing, length) <= longest else math.inf


@dataclass(frozen=True)
class Schedules:
    """The best schedule for every number of anchors up to the number of steps.

    Attributes:
        errors: [T + 1] float64, the least error with that many anchors; infinite where there is no schedule.
        last: [T + 1, 2], the last anchor of that schedule and its spacing.
        parents: [T + 1, step, spacing]: in the best schedule whose last anchor is `step`, `spacing` after the one
            before, the spacing of the one before.
    """

    errors: Floats
    last: NDArray[np.int64]
    parents: NDArray[np.int64]

    @classmethod
    def solve(cls, costs: IntervalCosts) -> "Schedules":
        """Find them all at once, adding one anchor per round; the first of equally good choices wins."""
        steps, spacings, _ = costs.table.shape
        errors = np.full(steps + 1, np.inf)
        last = np.zeros((steps + 1, 2), dtype=np.int64)
        parents = np.zeros((steps + 1, steps, spacings), dtype=np.int64)
        best = np.full((steps, spacings), np.inf)
        best[0, 0] = 0.0
        starts = np.arange(max(0, steps - spacings + 1), steps)
        for count in range(1, steps + 1):
            ended = best[starts] + costs.table[starts, :, steps - starts]
            row, spacing = divmod(int(ended.argmin()), spacings)
            errors[count], last[count] = ended[row, spacing], (starts[row], spacing)
            if count == steps:
                break
            extended = best[:, :, None] + costs.table
            choice, value = extended.argmin(axis=1), extended.min(axis=1)
            best = np.full((steps, spacings), np.inf)
            for length in range(1, min(spacings, steps)):
                best[length:, length] = value[:-length, length]
                parents[count + 1, length:, length] = choice[:-length, length]
        return cls(errors, last, parents)

    def anchors(self, count: int) -> tuple[int, ...]:
        """Return the anchor steps of the best schedule with `count` anchors."""
        step, spacing = map(int, self.last[count])
        steps_back = [step]
        for remaining in range(count, 1, -1):
            step, spacing = step - spacing, int(self.parents[remaining, step, spacing])
            steps_back.append(step)
        return tuple(reversed(steps_back))
