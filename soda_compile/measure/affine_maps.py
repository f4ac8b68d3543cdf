"""How a sampler makes the denoiser's input of its sample, and the scheduler's input of the denoiser's outputs.

Both are found by least squares from what was recorded, and checked: the input holds multiples of the sample, and what
the scheduler takes is a sum of the outputs (classifier-free guidance, whatever its scale).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from soda_compile.errors import SensitivityError

TOLERANCE = 1e-3
NARROW_TOLERANCE = 3e-2  # in 16 bits


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
    """

    factors: tuple[tuple[float, ...], ...]

    @classmethod
    def find(cls, outputs: Sequence[torch.Tensor], wanted: torch.Tensor) -> "OutputMap":
        """Find the factors.

        Raises:
            SensitivityError: If the scheduler's input is no such sum.
        """
        parts = [_copies(output, wanted) for output in outputs]
        if all(parts):
            columns = torch.stack([part.double().flatten() for copies in parts for part in copies], dim=1).cpu()
            target = wanted.double().flatten().cpu()
            found = torch.linalg.lstsq(columns, target[:, None], driver="gelsd").solution[:, 0]
            if float((columns @ found - target).norm()) <= _tolerance(wanted) * float(target.norm()):
                numbers = iter(found.tolist())
                return cls(tuple(tuple(next(numbers) for _ in copies) for copies in parts))
        raise SensitivityError(
            "what the scheduler takes is not a sum of the denoiser's outputs (rescaled guidance, or another post-"
            "processing), so a generation cannot be run again from another sample; plan without simulating and fitting"
        )

    def __call__(self, outputs: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
        """Return the scheduler's input for outputs of the calls, in the shape and dtype of ``like``."""
        total = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
        for output, factors in zip(outputs, self.factors, strict=True):
            for factor, part in zip(factors, _copies(output, like), strict=True):
                total += factor * part
        return total.to(like.dtype)


def is_same(value: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors hold the same but for rounding."""
    if value.shape != other.shape:
        return False
    off = torch.linalg.vector_norm(value.double() - other.double())
    return bool(off <= max(map(_tolerance, (value, other))) * torch.linalg.vector_norm(other.double()))


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
