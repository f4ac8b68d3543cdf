"""What whole intervals between anchors cost, as measured by running their stale steps."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soda_compile.errors import SensitivityError
from soda_compile.plans.operators import OPERATORS

Table = NDArray[np.float32]
ARRAYS = ("intervals.squares", "intervals.samples")
"""Names of what a file holds."""


@dataclass(frozen=True, eq=False)
class IntervalErrors:
    """The error that an interval leaves in the last sample, by what serves its stale steps.

    Entry [k, a, s, l] is for the interval of length l that begins at anchor step a, s steps after the anchor before (0
    where the operator reads one value), under the operator of order k: the mean over samples of the squared relative
    error of the last sample, were all other steps those of the original. NaN where it was not measured.

    Attributes:
        squares: float32 [orders, T, W + 2, W + 2] for T steps and a longest age of W steps.
        samples: samples that it was measured on.

    Raises:
        SensitivityError: the shape, the dtype or a value is impossible.
    """

    squares: Table
    samples: int

    def __post_init__(self) -> None:
        squares = self.squares
        fits = squares.ndim == 4 and squares.shape[2] == squares.shape[3] >= 3
        if squares.dtype != np.float32 or not fits or not 1 <= len(squares) <= len(OPERATORS):
            raise SensitivityError(
                f"errors of intervals are {squares.dtype} {squares.shape}; "
                "expected float32 [orders, steps, W + 2, W + 2]"
            )
        if self.samples < 1 or bool((squares < 0).any()) or bool(np.isinf(squares).any()):
            raise SensitivityError("errors of intervals must be finite, or NaN, not negative, and of at least 1 sample")

    @property
    def width(self) -> int:
        """Return W, the largest age in steps that was measured."""
        return int(self.squares.shape[3]) - 2

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what a file holds."""
        return dict(zip(ARRAYS, (self.squares, np.array([self.samples], dtype=np.int64)), strict=True))

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> "IntervalErrors | None":
        """Read what ``arrays`` gave; None where there is nothing.

        Raises:
            SensitivityError: an entry is missing or impossible.
        """
        squares, samples = map(arrays.get, ARRAYS)
        if squares is None and samples is None:
            return None
        if squares is None or samples is None or samples.shape != (1,):
            raise SensitivityError("errors of intervals are incomplete; calibrate again")
        return cls(squares, int(samples[0]))


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
    pooled = (a.samples * a.squares.astype(np.float64) + b.samples * b.squares.astype(np.float64)) / samples
    return IntervalErrors(pooled.astype(np.float32), samples)
