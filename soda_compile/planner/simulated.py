"""Anchors by what whole intervals were seen to cost when their stale steps were run."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from soda_compile.errors import SensitivityError
from soda_compile.planner.anchor_count import best_anchors, draft
from soda_compile.planner.anchors import IntervalCosts
from soda_compile.planner.problem import Draft, Problem, Strategy
from soda_compile.planner.stale_errors import Floats
from soda_compile.plans.actions import STALE, Action
from soda_compile.plans.interval_errors import IntervalErrors
from soda_compile.plans.over_samples import OverSamples
from soda_compile.plans.plan_file import SlotDtype, Slots
from soda_compile.plans.sensitivity import Metric


@dataclass(frozen=True)
class SimulatedSchedule(Strategy):
    """All regions compute at the anchors, and one operator, the best there, serves each interval between them.

    An interval costs the mean over samples of the squared relative error that it leaves in the last sample
    (``soda_compile.simulate``), and a schedule the sum of these: errors of different intervals are taken as unrelated.
    ``Plan.predicted_error`` is that sum.

    Attributes:
        operator: The highest order that may serve; "auto" for all that were simulated.
        objective: Metric whose tables ``explain`` shows; the error that is minimised is the sample's.
        over_samples: What counts of an interval's errors of all samples.
        slots: What is kept; intervals were simulated with what each region keeps.
        slot_dtype: What it is rounded to; intervals were simulated without rounding.
    """

    name: ClassVar[str] = "simulated intervals"
    alike: ClassVar[bool] = True
    operator: str = "auto"
    objective: Metric = "residual"
    over_samples: OverSamples = "mean"
    slots: Slots = "region"
    slot_dtype: SlotDtype | None = None

    def solve(self, problem: Problem) -> Draft:
        """Return the plan with the best anchors.

        Raises:
            SensitivityError: If no intervals were simulated.
        """
        return draft(problem, best_anchors(problem))

    def intervals(self, problem: Problem) -> IntervalCosts:
        """Return the cost of every interval under the best operator."""
        return IntervalCosts(self._best(problem)[0])

    def order_of(self, problem: Problem, anchor: int, spacing: int, length: int) -> int:
        """Return the order of the operator of an interval."""
        orders = self._best(problem)[1]
        longest = orders.shape[2] - 1
        return int(orders[anchor, spacing, length]) if max(spacing, length) <= longest else 0

    def stale_actions(self, problem: Problem, step: int, anchor: int, spacing: int, length: int) -> tuple[Action, ...]:
        """Return the operator of an interval, for all regions alike."""
        order = self.order_of(problem, anchor, spacing, length)
        return (STALE[order],) * len(problem.sensitivity.info.regions)

    def _best(self, problem: Problem) -> tuple[Floats, NDArray[np.int64]]:
        found = simulated_intervals(problem)
        orders = tuple(action.order for action in problem.errors.menu if action.order < len(found.squares))
        return _best(found, self.over_samples, orders, problem.sensitivity.info.max_interval)


def simulated_intervals(problem: Problem) -> IntervalErrors:
    """Return what was simulated.

    Raises:
        SensitivityError: If nothing was.
    """
    found = problem.sensitivity.intervals
    if found is None:
        raise SensitivityError(
            "no intervals were simulated; run soda_compile.simulate(recording, sensitivity) first, or take the "
            "strategy AnchorSchedule()"
        )
    return found


@lru_cache(maxsize=4)
def _best(
    errors: IntervalErrors, over_samples: OverSamples, orders: tuple[int, ...], width: int
) -> tuple[Floats, NDArray[np.int64]]:
    """Return the least cost over orders and the order that has it, [anchor, spacing, length]; infinite beyond."""
    squares = errors.table_over(over_samples)[list(orders)].astype(np.float64)
    squares[0] = squares[0][:, :1]  # reuse reads one value, whatever the spacing
    known = np.where(np.isnan(squares), np.inf, squares)
    beyond = width - errors.width
    padded = np.pad(known, ((0, 0), (0, 0), (0, beyond), (0, beyond)), constant_values=np.inf)
    padded[..., 1] = 0.0
    return padded.min(axis=0), np.asarray(orders)[padded.argmin(axis=0)]
