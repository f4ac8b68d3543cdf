"""Short vectors that stand for long ones: their sums are those of the long ones, their norms about the same."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

NUMBERS = 512
"""Entries of the sketches of all samples together: a norm over them is off by about sqrt(2 / NUMBERS), 6%."""


@dataclass(eq=False)
class Sketch:
    """Adds up values with random signs in random buckets, the same for all vectors.

    This is the count sketch of Charikar, Chen and Farach-Colton (2002, section 3.1) with one row; vectors that are
    no longer than it are kept as they are.

    Attributes:
        length: Number of buckets, K.
    """

    length: int
    _places: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def __call__(self, vectors: torch.Tensor) -> NDArray[np.float64]:
        """Return the sketches of vectors on the host, [samples, values] to float64 [samples, K]."""
        samples, size = vectors.shape
        found = torch.zeros(samples, self.length, dtype=torch.float64)
        if size <= self.length:
            found[:, :size] = vectors
        else:
            buckets, signs = self._placed(size)
            found.index_add_(1, buckets, vectors.double() * signs)
        kept: NDArray[np.float64] = found.numpy()
        return kept

    def _placed(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        if size not in self._places:
            draw = torch.Generator().manual_seed(0)
            buckets = torch.randint(self.length, (size,), generator=draw)
            signs = torch.randint(2, (size,), generator=draw).double() * 2 - 1
            self._places[size] = buckets, signs
        return self._places[size]


def sketch_for(samples: int) -> Sketch:
    """Return a sketch that is shorter the more samples there are."""
    return Sketch(max(NUMBERS // samples, 16))
