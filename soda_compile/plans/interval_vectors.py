"""What whole intervals between anchors add to the error of the last sample, as vectors: their signs can cancel."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soda_compile.errors import SensitivityError

Half = NDArray[np.float16]
Vector = NDArray[np.float32]
ARRAYS = ("intervals.vectors", "intervals.spacings", "intervals.unit")
"""Names of what a file holds."""
LARGEST = 2.0**15
"""What the largest entry becomes, which leaves float16 nine digits below it."""


@dataclass(frozen=True, eq=False)
class IntervalVectors:
    """The errors that intervals leave in the last sample, each a sketch whose products are about those of the errors.

    Entry [k, a, i, l] is for the interval of length l that begins at anchor step a, ``spacings[i]`` steps after the
    anchor before (i = 0 where the operator reads one value), under the operator of order k.

    Attributes:
        values: float16 [orders, T, len(spacings), W + 2, samples, K], in units; NaN where it was not measured.
        spacings: Distances of anchors that were run, ascending.
        unit: Relative error of the last sample that an entry of 1 stands for.

    Raises:
        SensitivityError: If the shape, the dtype or a value is impossible.
    """

    values: Half
    spacings: tuple[int, ...]
    unit: float

    def __post_init__(self) -> None:
        values, spacings = self.values, self.spacings
        if values.dtype != np.float16 or values.ndim != 6 or not 1 <= len(spacings) == values.shape[2]:
            raise SensitivityError(
                f"vectors of intervals are {values.dtype} {values.shape} for {len(spacings)} spacings; expected "
                "float16 [orders, steps, spacings, W + 2, samples, K]"
            )
        if list(spacings) != sorted({*spacings}) or spacings[0] < 1 or not 0 < self.unit < np.inf:
            raise SensitivityError(f"vectors of intervals have spacings {spacings} and the unit {self.unit}")

    @classmethod
    def pack(cls, vectors: NDArray[Any], spacings: tuple[int, ...]) -> "IntervalVectors":
        """Choose the unit for vectors [orders, T, spacings, W + 2, samples, K] in relative errors."""
        largest = float(np.nanmax(np.abs(vectors), initial=0.0)) or 1.0
        unit = largest / LARGEST
        return cls(np.ascontiguousarray(vectors / unit, dtype=np.float16), spacings, unit)

    def of(self, order: int, anchor: int, spacing: int, length: int) -> Vector:
        """Return the vectors of an interval, float32 [samples, K]; between spacings that were run they are mixed."""
        row: Vector = self.values[order, anchor, :, length].astype(np.float32) * np.float32(self.unit)
        if order == 0 or spacing <= self.spacings[0]:
            return np.asarray(row[0])
        last = int(np.searchsorted(self.spacings, spacing, side="right")) - 1
        if last == len(self.spacings) - 1 or np.isnan(row[last + 1]).any():
            return np.asarray(row[last])
        low, high = self.spacings[last : last + 2]
        share = np.float32((spacing - low) / (high - low))
        return np.asarray((1 - share) * row[last] + share * row[last + 1])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what a file holds."""
        found = (self.values, np.array(self.spacings, dtype=np.int64), np.array([self.unit], dtype=np.float64))
        return dict(zip(ARRAYS, found, strict=True))

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> "IntervalVectors | None":
        """Read what ``arrays`` gave; None where there is nothing, as in older files.

        Raises:
            SensitivityError: If an entry is missing or impossible.
        """
        values, spacings, unit = map(arrays.get, ARRAYS)
        if values is None and spacings is None and unit is None:
            return None
        if values is None or spacings is None or unit is None or unit.shape != (1,) or spacings.ndim != 1:
            raise SensitivityError("vectors of intervals are incomplete; simulate again")
        return cls(values, tuple(map(int, spacings)), float(unit[0]))


def merge_vectors(a: IntervalVectors | None, b: IntervalVectors | None) -> IntervalVectors | None:
    """Combine those of different samples; None where they do not lie side by side, as with other spacings."""
    if a is None or b is None or a.spacings != b.spacings:
        return None
    if (*a.values.shape[:4], a.values.shape[5]) != (*b.values.shape[:4], b.values.shape[5]):
        return None
    both = [each.values.astype(np.float32) * np.float32(each.unit) for each in (a, b)]
    return IntervalVectors.pack(np.concatenate(both, axis=4), a.spacings)
