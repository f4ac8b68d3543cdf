"""The unified adaptive strategy as the paper gives it (SODA, arXiv 2603.07057, UAS)."""

from dataclasses import dataclass

import numpy as np

from soda_compile.planner.choices import RegionSchedules, history
from soda_compile.planner.costs import Costs
from soda_compile.planner.stale_errors import Floats
from soda_compile.plans.actions import COMPUTE, PRUNE_RATES, REUSE, Action, prune

_GRID: tuple[Action, ...] = (COMPUTE, *(prune(rate) for rate in PRUNE_RATES), REUSE)


@dataclass(frozen=True, eq=False)
class PaperStrategy:
    """Between anchors, alpha = slope * Ec + beta for each module; it is pruned where Ep(alpha) < Ec, else reused.

    alpha, the share of tokens that keep their value, is rounded to PRUNE_RATES and to 0 and 1 beyond its ends: no
    token or every token keeps its value, so the region computes or is reused. A region that cannot be pruned at its
    rate, or not faster than it computes, is reused.

    Attributes:
        cache_error: [R, T] float64, Ec at each step, with the anchors that were chosen; 0 at anchors.
        prune_error: [R, T, 7] float64, Ep at each rate.
        stale: [R, T], whether there is a choice: False at anchors.
        costs: of all actions.
        slope: lambda of the paper.
    """

    cache_error: Floats
    prune_error: Floats
    stale: Floats
    costs: Costs
    slope: float

    @classmethod
    def read(
        cls, reuse: Floats, pruned: Floats, anchors: tuple[int, ...], costs: Costs, slope: float
    ) -> "PaperStrategy":
        """Look the errors up at the ages that the anchors give.

        Args:
            reuse: [T, R, W] cosine errors of reuse.
            pruned: [T, R, W, 7] cosine errors of pruning.
            anchors: the anchor steps.
            costs: of all actions.
            slope: lambda of the paper.
        """
        steps, _, width = reuse.shape
        computed = np.zeros((1, steps), dtype=bool)
        computed[0, list(anchors)] = True
        step = np.arange(steps)
        age = np.clip(step - history(computed)[0][0], 1, width)
        stale = np.broadcast_to(~computed, (reuse.shape[1], steps))
        cache_error = np.where(stale, reuse[step, :, age - 1].T, 0.0)
        return cls(cache_error, np.moveaxis(pruned[step, :, age - 1], 1, 0), stale, costs, slope)

    def rows(self, beta: float) -> RegionSchedules:
        """Return what every region does under this beta."""
        alpha = self.slope * self.cache_error + beta
        notch = np.clip(np.rint(alpha * len(_GRID[1:])), 0, len(_GRID) - 1).astype(np.int64)
        rate = np.clip(notch - 1, 0, len(PRUNE_RATES) - 1)
        pruned_error = np.take_along_axis(self.prune_error, rate[..., None], axis=2)[..., 0]
        table = np.stack([self.costs.column(action) for action in _GRID], axis=1)
        cost = np.take_along_axis(table, notch, axis=1)
        pays = (pruned_error < self.cache_error) & (cost < table[:, :1])
        notch = np.where((notch == 0) | pays, notch, len(_GRID) - 1)
        notch = np.where(self.stale, notch, 0)
        error = np.where(notch == 0, 0.0, np.where(notch == len(_GRID) - 1, self.cache_error, pruned_error))
        cost = np.take_along_axis(table, notch, axis=1)
        actions = np.array(_GRID, dtype=object)[notch]
        return RegionSchedules(tuple(map(tuple, actions)), error.sum(axis=1), cost.sum(axis=1))

    def within(self, budget: float) -> tuple[RegionSchedules, float] | None:
        """Return the rows that cost most within the budget, and their beta; None if reusing all costs more.

        Args:
            budget: of the regions, for one branch of guidance of a generation; what each call costs anyway is left out.
        """
        reach = 2.0 + abs(self.slope) * float(self.cache_error.max())
        low, high = -reach, reach
        best: tuple[RegionSchedules, float] | None = None
        for beta in (high, low):
            rows = self.rows(beta)
            if rows.costs.sum() <= budget:
                best = rows, beta
        if best is None or best[1] == low:
            return best
        for _ in range(60):
            middle = (low + high) / 2
            rows = self.rows(middle)
            if rows.costs.sum() > budget:
                low = middle
                continue
            high = middle
            if rows.costs.sum() > best[0].costs.sum():
                best = rows, middle
        return best
