"""Mean and variance of samples that arrive in parts."""

import numpy as np

from soda_compile.measure.gram import Floats


class Moments:
    """Count, mean and summed squared deviation of samples, each [metrics, entries]; NaN entries are not counted."""

    def __init__(self, *shape: int) -> None:
        self.count, self.mean, self.deviation = np.zeros((3, *shape))

    def add(self, samples: Floats) -> None:
        """Add samples [rows, metrics, entries] (Chan's parallel formula)."""
        counted = ~np.isnan(samples)
        count = counted.sum(0)
        mean = np.where(counted, samples, 0.0).sum(0) / np.maximum(count, 1)
        deviation = (np.where(counted, samples - mean, 0.0) ** 2).sum(0)
        total = np.maximum(self.count + count, 1)
        difference = mean - self.mean
        self.deviation += deviation + difference**2 * self.count * count / total
        self.mean += difference * count / total
        self.count += count
