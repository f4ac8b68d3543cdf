"""How a sampler makes the denoiser's input of its sample, and the scheduler's input of the denoiser's outputs.

Both are found by least squares from what was recorded, and checked: the input holds multiples of the sample, and what
the scheduler takes is a sum of the outputs (classifier-free guidance, whatever its scale), perhaps with the norm that
one of them has along the last axis (as QwenImage's guidance).
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from soda_compile.errors import SensitivityError

TOLERANCE = 1e-3
NARROW_TOLERANCE = 3e-2  # in 16 bits
EXACT = 1e-6  # rounding in 32 bits


@dataclass(frozen=True, eq=False)
class StateInput:
    """The argument of a denoiser call that holds the sample.

    Attributes:
        key: Its position or name.
        factors: What the sample is multiplied by in each copy along the batch.
    """

    key: int | str
    factors: tuple[float, ...]

    @classmethod
    def find(cls, arguments: Sequence[Any], options: Mapping[str, Any], sample: torch.Tensor) -> "StateInput":
        """Find the argument that holds copies of a sample, perhaps beside further channels.

        Raises:
            SensitivityError: If none does.
        """
        named: list[tuple[int | str, Any]] = [*enumerate(arguments), *options.items()]
        for key, value in named:
            if isinstance(value, torch.Tensor) and (factors := _factors(value, sample)) is not None:
                return cls(key, factors)
        raise SensitivityError(
            "no argument of the denoiser holds a multiple of the scheduler's sample, so a generation cannot be run "
            "again from another sample; plan without simulating and fitting"
        )

    def replaced(
        self, arguments: Sequence[Any], options: Mapping[str, Any], sample: torch.Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a call with another sample."""
        old = arguments[self.key] if isinstance(self.key, int) else options[self.key]
        value = old.clone()
        for factor, part in zip(self.factors, _copies(value, sample), strict=True):
            part.copy_(sample if factor == 1 else sample * factor)
        if isinstance(self.key, int):
            return (*arguments[: self.key], value, *arguments[self.key + 1 :]), dict(options)
        return tuple(arguments), {**options, self.key: value}


@dataclass(frozen=True, eq=False)
class OutputMap:
    """The scheduler's input as a sum of the outputs of a step's denoiser calls.

    Attributes:
        factors: Of each copy along the batch, for each call.
        norm_of: Number of the copy, of all calls' copies, whose norm along the last axis the sum is given; None for
            the sum as it is.
    """

    factors: tuple[tuple[float, ...], ...]
    norm_of: int | None = None

    @classmethod
    def find(cls, outputs: Sequence[torch.Tensor], wanted: torch.Tensor) -> "OutputMap":
        """Find the factors.

        Raises:
            SensitivityError: If the scheduler's input is no such sum.
        """
        parts = [_copies(output, wanted) for output in outputs]
        least, best = _tolerance(wanted), None
        for numbers, norm_of in _candidates(parts, wanted) if all(parts) else ():
            factor = iter(numbers.tolist())
            found = cls(tuple(tuple(next(factor) for _ in copies) for copies in parts), norm_of)
            if (off := _relative(found(outputs, wanted.double()), wanted)) < least:
                least, best = off / 2, found  # the plain sum, which is first, stays unless another is clearly better
            if best is not None and off < EXACT:
                break
        if best is not None:
            return best
        raise SensitivityError(
            "what the scheduler takes is not a sum of the denoiser's outputs (rescaled guidance, or another post-"
            "processing), so a generation cannot be run again from another sample; plan without simulating and fitting"
        )

    def __call__(self, outputs: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
        """Return the scheduler's input for outputs of the calls, in the shape and dtype of ``like``."""
        total = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
        copies = [copy for output in outputs for copy in _copies(output, like)]
        for factor, copy in zip(itertools.chain.from_iterable(self.factors), copies, strict=True):
            total += factor * copy
        if self.norm_of is not None:
            total *= _norm(copies[self.norm_of].to(total.dtype)) / _norm(total)
        return total.to(like.dtype)


def _candidates(
    parts: Sequence[Sequence[torch.Tensor]], wanted: torch.Tensor
) -> Iterator[tuple[torch.Tensor, int | None]]:
    """Give factors of copies, and the number of the copy whose norm their sum may be given."""
    copies = [copy.double().cpu() for part in parts for copy in part]
    target = wanted.double().cpu()
    yield _sum_factors(copies, target), None
    directed = _direction_factors(copies, target)
    yield from ((directed, number) for number in range(len(copies)))


def _sum_factors(copies: Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """Return factors whose sum of copies is closest to a target, float64 [copies]."""
    return _least_squares(torch.stack([copy.flatten() for copy in copies], dim=1), target.flatten())


def _direction_factors(copies: Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """Return factors, one in all, whose sum of copies is closest to a multiple of a target in each row."""
    directions = target / _norm(target)

    def across(value: torch.Tensor) -> torch.Tensor:
        return (value - (value * directions).sum(-1, keepdim=True) * directions).flatten()

    first, *others = copies
    if not others:
        return torch.ones(1, dtype=torch.float64)
    found = _least_squares(torch.stack([across(copy - first) for copy in others], dim=1), -across(first))
    return torch.cat([1 - found.sum(0, keepdim=True), found])


def _least_squares(columns: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    solution: torch.Tensor = torch.linalg.lstsq(columns, target[:, None], driver="gelsd").solution[:, 0]
    return solution


def _norm(value: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(value, dim=-1, keepdim=True)
    return norm


def is_same(value: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors hold the same but for rounding."""
    return value.shape == other.shape and _relative(value, other) <= max(map(_tolerance, (value, other)))


def _relative(value: torch.Tensor, wanted: torch.Tensor) -> float:
    off = torch.linalg.vector_norm(value.double() - wanted.double())
    return float(off / torch.linalg.vector_norm(wanted.double()))


def _factors(value: torch.Tensor, sample: torch.Tensor) -> tuple[float, ...] | None:
    if not value.is_floating_point():
        return None
    factors, flat = [], sample.double().flatten()
    for part in _copies(value, sample):
        copy = part.double().flatten()
        factor = float(copy @ flat / (flat @ flat))
        if not float((copy - factor * flat).norm()) <= _tolerance(value) * float(copy.norm()) or not factor:
            return None
        factors.append(1.0 if abs(factor - 1) < 1e-6 else factor)
    return tuple(factors) or None


def _copies(value: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the views of a value that may hold copies of another; none where the shapes do not fit."""
    fits = value.dim() == like.dim() > 1 and value.shape[2:] == like.shape[2:] and value.shape[1] >= like.shape[1]
    if not fits or not len(value) or len(value) % len(like):
        return ()
    return torch.split(value[:, : like.shape[1]], len(like))


def _tolerance(value: torch.Tensor) -> float:
    return NARROW_TOLERANCE if torch.finfo(value.dtype).bits < 32 else TOLERANCE
