"""Rules for the residual of the whole stack of blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from benchmarks.leaderboard.forecasts import fitted_weights

RIDGE = 1e-4


def modulated(block: nn.Module, arguments: dict[str, Any]) -> Tensor:
    """The first block's input after its timestep-dependent norm, which TeaCache looks at.

    Raises:
        NotImplementedError: If the block's norm is called in a way that is not known here.
    """
    hidden, norm = arguments["hidden_states"], block.norm1
    kind = type(block).__name__
    if kind == "BasicTransformerBlock" and getattr(block, "norm_type", None) == "ada_norm_zero":
        found = norm(hidden, arguments["timestep"], arguments["class_labels"], hidden_dtype=hidden.dtype)  # type: ignore[operator]
    elif "temb" in arguments:
        found = norm(hidden, emb=arguments["temb"])  # type: ignore[operator]
    else:
        raise NotImplementedError(f"how {kind} is modulated by the timestep is not known")
    tensor: Tensor = found[0] if isinstance(found, tuple) else found
    return tensor


def relative_l1(value: Tensor, before: Tensor) -> float:
    """Mean change over mean magnitude, TeaCache's eq. 4, over the whole batch."""
    return float((value - before).abs().mean() / before.abs().mean())


@dataclass(eq=False)
class Reused:
    """Keeps the newest residual and gives it back."""

    kept: Tensor | None = None

    def residual(self, step: int) -> Tensor:
        assert self.kept is not None
        return self.kept

    def computed(self, step: int, residual: Tensor) -> None:
        self.kept = residual

    def reset(self) -> None:
        self.kept = None


class Accumulated(Reused):
    """TeaCache: skips while the rescaled changes of the modulated input add up to less than a threshold.

    The first and the last step are computed, as in the authors' code.
    """

    def __init__(self, threshold: float, polynomial: Sequence[float], limit: int, steps: int) -> None:
        super().__init__()
        self.threshold, self.polynomial, self.limit, self.steps = threshold, polynomial, limit, steps
        self.seen: Tensor | None = None
        self.total, self.row = 0.0, 0

    def skips(self, step: int, block: nn.Module, arguments: dict[str, Any]) -> bool:
        seen = modulated(block, arguments)
        before, self.seen = self.seen, seen
        if before is None or self.kept is None or step == self.steps - 1:
            self.total, self.row = 0.0, 0
            return False
        self.total += max(0.0, float(np.polyval(self.polynomial, relative_l1(seen, before))))
        if self.total < self.threshold and self.row < self.limit:
            self.row += 1
            return True
        self.total, self.row = 0.0, 0
        return False

    def reset(self) -> None:
        super().reset()
        self.seen = None
        self.total, self.row = 0.0, 0


class Magnitudes(Reused):
    """MagCache: skips while the error that calibrated ratios of magnitudes predict adds up to less than a threshold."""

    def __init__(self, threshold: float, ratios: Sequence[float], limit: int, retained: int) -> None:
        super().__init__()
        self.threshold, self.ratios, self.limit, self.retained = threshold, ratios, limit, retained
        self.ratio, self.error, self.row = 1.0, 0.0, 0

    def skips(self, step: int, block: nn.Module, arguments: dict[str, Any]) -> bool:
        if step < max(1, self.retained):
            return False
        self.ratio *= self.ratios[step]
        self.error += abs(1 - self.ratio)
        self.row += 1
        if self.kept is not None and self.error <= self.threshold and self.row <= self.limit:
            return True
        self.ratio, self.error, self.row = 1.0, 0.0, 0
        return False

    def reset(self) -> None:
        super().reset()
        self.ratio, self.error, self.row = 1.0, 0.0, 0


class FittedStack:
    """Computes a fixed mask; between, combines kept residuals as fits best on calibration seeds."""

    def __init__(self, mask: tuple[bool, ...], gram: npt.NDArray[np.float64], sources: int) -> None:
        self.mask, self.gram, self.sources = mask, gram, sources
        self.kept: list[tuple[int, Tensor]] = []

    def skips(self, step: int, block: nn.Module, arguments: dict[str, Any]) -> bool:
        return not self.mask[step]

    def residual(self, step: int) -> Tensor:
        weights = fitted_weights(self.gram, [source for source, _ in self.kept], step, RIDGE)
        total = self.kept[0][1] * weights[0]
        for weight, (_, residual) in zip(weights[1:], self.kept[1:], strict=True):
            total = total + weight * residual
        return total

    def computed(self, step: int, residual: Tensor) -> None:
        self.kept = [(step, residual), *self.kept][: self.sources]

    def reset(self) -> None:
        self.kept = []
