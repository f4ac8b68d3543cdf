"""What counts of numbers that samples have each their own of: the mean, or the worst."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

OverSamples = Literal["mean", "worst"]
"""The mean, or the 90th percentile."""
WORST = 0.9
"""Quantile over samples that is called the worst: one in ten is worse."""


def over(values: NDArray[Any], over_samples: OverSamples) -> float:
    """Return what counts of the values of all samples."""
    return float(np.mean(values) if over_samples == "mean" else np.quantile(values, WORST))
