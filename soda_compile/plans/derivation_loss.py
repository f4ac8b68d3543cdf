"""What a sensitivity loses by being read between measured steps, as far as the measurement itself tells."""

import math
from dataclasses import dataclass

import numpy as np

from soda_compile.plans.noise_schedule import Floats
from soda_compile.plans.operators import OPERATORS, Operator
from soda_compile.plans.resample import Questions, resample
from soda_compile.plans.sensitivity import Sensitivity

UNEVEN = 1.25
"""Longest over shortest step from which on it is told; rounded timesteps stay below."""


@dataclass(frozen=True)
class DerivationLoss:
    """What a derived sensitivity has lost against a measured one, as far as the measurement itself tells.

    Attributes:
        measured_steps: steps that were measured.
        steps: steps of the derived schedule.
        visited: share of the entries whose levels were all measured; these lose nothing.
        unknown: share of the entries that lie further apart than was measured; they are NaN, and plans avoid them.
        beyond: steps whose level lies outside what was measured, by at most ``noise_schedule.BEYOND`` measured steps.
        uneven: length of the longest step over that of the shortest, counted in measured steps; 1 where all are alike.
            Forecasts take steps for even, so their derived errors are rougher than the estimate below where it is far
            from 1.
        median: median relative error of the residual errors of reuse and forecasts where every other measured step is
            left out and read between the rest; NaN where too few were measured. That bridges gaps twice as wide as
            those of the measurement, so schedules that are no finer than that lose less.
        worst_tenth: 90th percentile of the same.
    """

    measured_steps: int
    steps: int
    visited: float
    unknown: float
    beyond: int
    uneven: float
    median: float
    worst_tenth: float

    def __str__(self) -> str:
        if self.measured_steps == self.steps and self.visited == 1 and not self.unknown:
            return f"measured at these {self.steps} steps"
        text = f"{self.steps} steps derived from {self.measured_steps}: {self.visited:.0%} of the entries were measured"
        if self.visited < 1 - self.unknown:
            text += ", the others are read between"
            if math.isfinite(self.median):
                text += (
                    f" (errors within {self.median:.1%}, a tenth of them off by more than {self.worst_tenth:.1%}, by "
                    "leaving out every other measured step)"
                )
        if self.unknown:
            text += f"; {self.unknown:.0%} lie further apart than was measured"
        if self.beyond:
            text += f"; {self.beyond} steps lie just outside the measured levels"
        if self.uneven > UNEVEN:
            text += f"; the longest step is {self.uneven:.1f} times the shortest, so forecasts are rougher"
        return text


def loss_of(sensitivity: Sensitivity, where: Floats, width: int) -> DerivationLoss:
    """Count what is read between, and estimate how well.

    Args:
        sensitivity: what was measured.
        where: [S], where the steps of the new schedule lie among the measured ones.
        width: W of the new schedule.
    """
    info = sensitivity.info
    exist = visited = unknown = 0
    for operator in _offered(sensitivity):
        asked = Questions.of(where, operator.order, width, info.max_interval)
        exist += int(asked.exists.sum())
        visited += int((asked.valid & asked.exact).sum())
        unknown += int((asked.exists & ~asked.valid).sum())
    beyond = int(((where < 0) | (where > info.steps - 1)).sum())
    lengths = np.diff(where[(where >= 0) & (where <= info.steps - 1)])
    uneven, exist = float(lengths.max() / lengths.min()) if lengths.size else 1.0, max(exist, 1)
    shares = visited / exist, unknown / exist
    return DerivationLoss(info.steps, len(where), *shares, beyond, uneven, *_left_out(sensitivity))


def _left_out(sensitivity: Sensitivity) -> tuple[float, float]:
    """Return the median and 90th percentile of the errors of reading each other measured step between the rest."""
    steps, width = sensitivity.info.steps, sensitivity.info.max_interval
    if steps < 6 or width < 4:
        return math.nan, math.nan
    metric = next(iter(sensitivity.mean)).partition(".")[0]
    metric = "residual" if "residual.reuse" in sensitivity.mean else metric
    orders = {f"{metric}.{each.name}": each.order for each in _offered(sensitivity)}
    measured = {key: sensitivity.mean[key] for key in orders if key in sensitivity.mean}
    every_other = np.arange(0.0, steps, 2)
    half = resample(measured, every_other, width // 2)
    again = np.arange(steps) / 2
    wrong = []
    for key, read in resample(half, again, width).items():
        asked = Questions.of(again, orders[key], width, width // 2)
        left_out = np.moveaxis(np.broadcast_to(asked.valid & ~asked.exact, (read.shape[1], *asked.valid.shape)), 0, 1)
        found, true = read[left_out].astype(np.float64), measured[key][left_out].astype(np.float64)
        good = np.isfinite(found) & (true > 0)
        wrong.append(np.abs(found[good] / true[good] - 1))
    apart = np.concatenate(wrong or [np.empty(0)])
    return (float(np.median(apart)), float(np.quantile(apart, 0.9))) if apart.size else (math.nan, math.nan)


def _offered(sensitivity: Sensitivity) -> tuple[Operator, ...]:
    """Return the measured operators among those that plans choose from by default."""
    measured = {key.partition(".")[2] for key in sensitivity.mean}
    return tuple(operator for operator in OPERATORS if operator.default and operator.name in measured)
