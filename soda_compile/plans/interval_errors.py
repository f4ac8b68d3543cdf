"""What whole intervals between anchors cost, as measured by running their stale steps."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soda_compile.errors import SensitivityError
from soda_compile.plans.interval_vectors import ARRAYS as VECTOR_ARRAYS
from soda_compile.plans.interval_vectors import IntervalVectors, merge_vectors
from soda_compile.plans.operators import OPERATORS
from soda_compile.plans.over_samples import OverSamples

Table = NDArray[np.float32]
ARRAYS = ("intervals.squares", "intervals.samples", "intervals.worst", *VECTOR_ARRAYS)
"""Names of what a file holds; older ones end after the second."""


@dataclass(frozen=True, eq=False)
class IntervalErrors:
    """The error that an interval leaves in the last sample, by what serves its stale steps.

    Entry [k, a, s, l] is for the interval of length l that begins at anchor step a, s steps after the anchor before (0
    where the operator reads one value), under the operator of order k: the mean over samples of the squared relative
    error of the last sample, were all other steps those of the original. NaN where it was not measured.

    Attributes:
        squares: float32 [orders, T, W + 2, W + 2] for T steps and a longest age of W steps.
        samples: samples that it was measured on.
        worst: the 90th percentile over samples instead of the mean; None in older files.
        vectors: the errors with their directions; None in older files.

    Raises:
        SensitivityError: the shape, the dtype or a value is impossible.
    """

    squares: Table
    samples: int
    worst: Table | None = None
    vectors: IntervalVectors | None = None

    def __post_init__(self) -> None:
        squares = self.squares
        fits = squares.ndim == 4 and squares.shape[2] == squares.shape[3] >= 3
        if squares.dtype != np.float32 or not fits or not 1 <= len(squares) <= len(OPERATORS):
            raise SensitivityError(
                f"errors of intervals are {squares.dtype} {squares.shape}; "
                "expected float32 [orders, steps, W + 2, W + 2]"
            )
        if self.worst is not None and (self.worst.dtype, self.worst.shape) != (squares.dtype, squares.shape):
            raise SensitivityError(f"worst errors of intervals are {self.worst.dtype} {self.worst.shape}")
        if self.vectors is not None:
            orders, steps, _, size, samples, _ = self.vectors.values.shape
            if (orders, steps, size, samples) != (*squares.shape[:2], squares.shape[3], self.samples):
                raise SensitivityError(f"vectors of intervals are {self.vectors.values.shape} beside {squares.shape}")
        if self.samples < 1 or bool((squares < 0).any()) or bool(np.isinf(squares).any()):
            raise SensitivityError("errors of intervals must be finite, or NaN, not negative, and of at least 1 sample")

    @property
    def width(self) -> int:
        """Return W, the largest age in steps that was measured."""
        return int(self.squares.shape[3]) - 2

    def table_over(self, over_samples: OverSamples) -> Table:
        """Return what counts of the squared errors of samples.

        Raises:
            SensitivityError: it was not measured.
        """
        table = self.squares if over_samples == "mean" else self.worst
        if table is None:
            raise SensitivityError(
                "the worst errors of intervals were not measured; run soda_compile.simulate(recording, sensitivity) "
                'again, or take over_samples="mean"'
            )
        return table

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what a file holds."""
        found: dict[str, NDArray[Any]] = {
            "intervals.squares": self.squares,
            "intervals.samples": np.array([self.samples], dtype=np.int64),
        }
        if self.worst is not None:
            found["intervals.worst"] = self.worst
        return {**found, **self.vectors.arrays()} if self.vectors is not None else found

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> "IntervalErrors | None":
        """Read what ``arrays`` gave; None where there is nothing.

        Raises:
            SensitivityError: an entry is missing or impossible.
        """
        squares, samples, worst = map(arrays.get, ARRAYS[:3])
        if not any(name in arrays for name in ARRAYS):
            return None
        if squares is None or samples is None or samples.shape != (1,):
            raise SensitivityError("errors of intervals are incomplete; calibrate again")
        return cls(squares, int(samples[0]), worst, IntervalVectors.from_arrays(arrays))


def merge_intervals(a: IntervalErrors | None, b: IntervalErrors | None) -> IntervalErrors | None:
    """Combine two measurements as if they had been one; what only one has is kept.

    Raises:
        SensitivityError: they have different shapes.
    """
    if a is None or b is None:
        return a or b
    if a.squares.shape != b.squares.shape:
        raise SensitivityError(f"cannot merge errors of intervals of shapes {a.squares.shape} and {b.squares.shape}")
    samples = a.samples + b.samples
    worst = None
    if a.worst is not None and b.worst is not None:
        worst = _pooled(a, a.worst, b, b.worst)  # of both together a percentile lies about there
    return IntervalErrors(_pooled(a, a.squares, b, b.squares), samples, worst, merge_vectors(a.vectors, b.vectors))


def _pooled(a: IntervalErrors, of_a: Table, b: IntervalErrors, of_b: Table) -> Table:
    total = a.samples * of_a.astype(np.float64) + b.samples * of_b.astype(np.float64)
    return (total / (a.samples + b.samples)).astype(np.float32)
