"""The past values that calibration keeps: what of them, how many, and how much memory they take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import torch
from torch import fx

from soda_compile.ir.aten_operators import tensor_of
from soda_compile.ir.structure import Region
from soda_compile.measure.token_subsampling import thinned_size


@dataclass(frozen=True, eq=False)
class TokenStream:
    """One cut of a region now and before. Its tokens are ranked against each other, G rows of N.

    Attributes:
        present: The cut now, [rows, G, N, features].
        past: The cut 1, 2, ... steps ago, [lags, rows, G, N, features].
        weight: Squared factors with which it enters the residual stream, broadcastable to ``present``; None for ones.
        carry: The residual stream at these tokens now, [rows, G, N, width]; None if they cannot be ranked or need
            not be.
        past_carry: The same 1, 2, ... steps ago, [lags, rows, G, N, width]; None if it was not kept.
    """

    present: torch.Tensor
    past: torch.Tensor
    weight: torch.Tensor | None = None
    carry: torch.Tensor | None = None
    past_carry: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Window:
    """Past values of one region in one stream of calls, newest first.

    Attributes:
        lags: How many values of the cuts are kept.
        carry_lags: How many values of the carries are kept; 0 for none.
    """

    lags: int
    carry_lags: int
    _cuts: list[list[torch.Tensor]] = field(default_factory=list)
    _carries: list[list[torch.Tensor]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._cuts)

    def streams(
        self, cuts: Sequence[torch.Tensor], weights: Sequence[torch.Tensor] | None, carries: Sequence[torch.Tensor]
    ) -> tuple[TokenStream, ...]:
        """The present values beside the past ones; ``carries`` is empty or has one for each cut."""
        olds = [torch.stack(values) for values in zip(*self._cuts, strict=True)]
        old_carries = [torch.stack(values) for values in zip(*self._carries, strict=True)]
        parts = zip_longest(cuts, olds, weights or (), carries, old_carries)
        return tuple(TokenStream(*part) for part in parts)

    def keep(self, cuts: Iterable[torch.Tensor], carries: Iterable[torch.Tensor]) -> None:
        """Copies the present values; the oldest ones go."""
        for kept, values, length in ((self._cuts, cuts, self.lags), (self._carries, carries, self.carry_lags)):
            kept.insert(0, [value.clone() for value in values] if length else [])
            del kept[length:]

    @property
    def memory_bytes(self) -> int:
        """Size of what it holds."""
        return sum(value.nbytes for step in (*self._cuts, *self._carries) for value in step)


def window_bytes(region: Region, carries: Sequence[fx.Node], window: Window, rows: int, stride: int) -> int:
    """The most memory that a window takes: one value more than it keeps, as a new one comes before the oldest goes.

    Args:
        region: Whose values.
        carries: The carry of each cut.
        window: An empty one.
        rows: Samples in the batch.
        stride: As for ``thin``.
    """
    cuts = sum(thinned_size(cut.shape, rows, stride) * cut.dtype.itemsize for cut in region.cuts)
    values = [tensor_of(carry) for carry in carries] if window.carry_lags else []
    streams = sum(thinned_size(value.shape, rows, stride) * value.dtype.itemsize for value in values)
    return cuts * (window.lags + 1) + streams * (window.carry_lags + 1)
