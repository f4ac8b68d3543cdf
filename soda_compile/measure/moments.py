"""Mean and variance of samples that arrive in parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from soda_compile.measure.gram import Floats


@dataclass
class Moments:
    """Count, mean and summed squared deviation of samples, each [metrics, entries]; NaN entries are not counted."""

    count: Floats
    mean: Floats
    deviation: Floats

    @classmethod
    def empty(cls, *shape: int) -> Moments:
        """No samples yet."""
        return cls(*(np.zeros(shape) for _ in range(3)))

    def add(self, samples: Floats) -> None:
        """Adds samples [rows, metrics, entries] (Chan's parallel formula)."""
        known = ~np.isnan(samples)
        count = known.sum(0)
        mean = np.where(known, samples, 0.0).sum(0) / np.maximum(count, 1)
        deviation = (np.where(known, samples - mean, 0.0) ** 2).sum(0)
        total = np.maximum(self.count + count, 1)
        difference = mean - self.mean
        self.deviation += deviation + difference**2 * self.count * count / total
        self.mean += difference * count / total
        self.count += count
