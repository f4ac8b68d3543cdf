"""Anchors by the error that a whole schedule leaves, as errors of intervals add up or cancel."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from soda_compile.errors import SensitivityError
from soda_compile.planner.anchor_count import Anchors, anchor_actions, best_anchors
from soda_compile.planner.problem import Draft, Problem
from soda_compile.planner.simulated import SimulatedSchedule, simulated_intervals
from soda_compile.plans.interval_vectors import IntervalVectors, Vector
from soda_compile.plans.over_samples import over

STARTS = 12
KICK = 3
"""Searches, and anchors that are drawn anew before each but the first two."""


@dataclass(frozen=True)
class SearchedSchedule(SimulatedSchedule):
    """Like ``SimulatedSchedule``, but the sum of the errors is small, not the sum of their squares.

    What intervals leave in the last sample are vectors, which cancel where they point against each other; dynamic
    programming cannot see that, as what an interval adds depends on all others. So from the schedule that it finds,
    and from others near it, single anchors are moved for as long as that helps.

    ``Plan.predicted_error`` is the mean over samples of the squared relative error of the last sample.
    """

    name: ClassVar[str] = "searched intervals"

    def solve(self, problem: Problem) -> Draft:
        """Return the plan with the best anchors that were found.

        Raises:
            SensitivityError: If no vectors of intervals were measured.
        """
        vectors = simulated_intervals(problem).vectors
        if vectors is None:
            raise SensitivityError(
                "directions of the errors of intervals were not measured; run soda_compile.simulate(recording, "
                "sensitivity) again, or take the strategy SimulatedSchedule()"
            )
        first = best_anchors(problem)
        found = _Search(problem, self, vectors).best(first)
        return Draft(anchor_actions(problem, found.anchors), found.error)


@dataclass(frozen=True)
class _Found:
    """Anchors, and the error of the schedule."""

    error: float
    anchors: Anchors


@dataclass(eq=False)
class _Search:
    """Moves anchors.

    Attributes:
        problem: The problem.
        strategy: Chooses the operator of each interval.
        vectors: Of all intervals.
    """

    problem: Problem
    strategy: SearchedSchedule
    vectors: IntervalVectors
    _known: dict[tuple[int, int, int], Vector | None] = field(default_factory=dict)

    def best(self, first: Anchors) -> _Found:
        """Return the best of some searches, the first of them from given anchors."""
        draw = np.random.default_rng(0)
        count, steps = len(first), self.problem.steps
        best = self._descend(first)
        best = min(best, self._descend(tuple(place * steps // count for place in range(count))), key=_error)
        for _ in range(STARTS - 2 if count > 1 else 0):
            kept = set(draw.choice(best.anchors[1:], max(0, count - 1 - KICK), replace=False).tolist()) | {0}
            free = [step for step in range(steps) if step not in kept]
            kept |= set(draw.choice(free, count - len(kept), replace=False).tolist())
            best = min(best, self._descend(tuple(sorted(kept))), key=_error)
        return best

    def _descend(self, anchors: Anchors) -> _Found:
        """Move the anchor that helps most, for as long as one does."""
        best = _Found(self.error(anchors), anchors)
        while True:
            moved = min(
                (_Found(self.error(each), each) for each in self._moves(best.anchors)), key=_error, default=best
            )
            if moved.error >= best.error:
                return best
            best = moved

    def _moves(self, anchors: Anchors) -> Iterator[Anchors]:
        free = [step for step in range(1, self.problem.steps) if step not in anchors]
        for place in range(1, len(anchors)):
            others = anchors[:place] + anchors[place + 1 :]
            yield from (tuple(sorted((*others, step))) for step in free)

    def error(self, anchors: Anchors) -> float:
        """Return the squared relative error of a schedule over samples; infinite where an interval is unknown."""
        parts, spacing = [], 0
        for anchor, end in zip(anchors, (*anchors[1:], self.problem.steps), strict=True):
            length = end - anchor
            if length > 1:
                part = self._vector(anchor, spacing, length)
                if part is None:
                    return np.inf
                parts.append(part)
            spacing = length
        if not parts:
            return 0.0
        squares = np.square(np.sum(parts, axis=0)).sum(axis=-1, dtype=np.float64)
        return over(squares, self.strategy.over_samples)

    def _vector(self, anchor: int, spacing: int, length: int) -> Vector | None:
        key = anchor, spacing, length
        if key not in self._known:
            self._known[key] = self._read(*key)
        return self._known[key]

    def _read(self, anchor: int, spacing: int, length: int) -> Vector | None:
        if not np.isfinite(self.problem.intervals.total_of(anchor, spacing, length)):
            return None
        order = self.strategy.order_of(self.problem, anchor, spacing, length)
        found = self.vectors.of(order, anchor, spacing, length)
        return None if np.isnan(found).any() else found


def _error(found: _Found) -> float:
    return found.error
