"""The past values that calibration keeps, and the memory that they take."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import torch

from soda_compile.measure.token_subsampling import subsampled_size


@dataclass(frozen=True, eq=False)
class TokenGroup:
    """One cut of a region now and before. Its tokens are ranked against each other, G frames of N.

    Attributes:
        present: The cut now, [samples, G, N, features].
        past: The cut 1, 2, ... steps ago, [lags, samples, G, N, features].
        weight: Squared factors with which it enters the residual stream, broadcastable to ``present``; None for ones.
        carry: The residual stream at these tokens now, [samples, G, N, width]; None if they cannot be ranked or need
            not be.
        past_carry: The same 1, 2, ... steps ago, [lags, samples, G, N, width]; None if it was not kept.
    """

    present: torch.Tensor
    past: torch.Tensor
    weight: torch.Tensor | None = None
    carry: torch.Tensor | None = None
    past_carry: torch.Tensor | None = None


@dataclass(eq=False)
class History:
    """Past values of one region in one branch of guidance, of consecutive steps, newest first.

    Attributes:
        lags: How many values of the cuts are kept.
        carry_lags: How many values of the carries are kept; 0 for none.
        step: Step of the newest value.
        cuts: The kept values of the cuts, [lag][cut].
        carries: The kept values of the carries, [lag][cut].
    """

    lags: int
    carry_lags: int
    step: int = -1
    cuts: list[list[torch.Tensor]] = field(default_factory=list)
    carries: list[list[torch.Tensor]] = field(default_factory=list)

    def reach(self, step: int) -> int:
        """Return how many values there are before a step; none if the step before was left out."""
        if self.step != step - 1:
            self.cuts.clear()
            self.carries.clear()
        return len(self.cuts)

    def token_groups(
        self, cuts: Sequence[torch.Tensor], weights: Sequence[torch.Tensor] | None, carries: Sequence[torch.Tensor]
    ) -> tuple[TokenGroup, ...]:
        """Put the present values beside the past ones; ``carries`` is empty or has one for each cut."""
        past = [torch.stack(values) for values in zip(*self.cuts, strict=True)]
        past_carries = [torch.stack(values) for values in zip(*self.carries, strict=True)]
        return tuple(TokenGroup(*parts) for parts in zip_longest(cuts, past, weights or (), carries, past_carries))

    def keep(self, step: int, cuts: Iterable[torch.Tensor], carries: Iterable[torch.Tensor]) -> None:
        """Copy the present values; the oldest ones go."""
        self.step = step
        for kept, values, length in ((self.cuts, cuts, self.lags), (self.carries, carries, self.carry_lags)):
            kept.insert(0, [value.clone() for value in values] if length else [])
            del kept[length:]

    def peak_bytes(
        self, cuts: Sequence[torch.Tensor], carries: Sequence[torch.Tensor], samples: int, stride: int
    ) -> int:
        """Return the most memory it takes: one value more than it keeps, as a new one comes before the oldest goes."""
        cut, carry = (
            sum(subsampled_size(value.shape, samples, stride) * value.dtype.itemsize for value in values)
            for values in (cuts, carries)
        )
        return cut * (self.lags + 1) + (carry * (self.carry_lags + 1) if self.carry_lags else 0)
