"""What calibration seeds say of the stack's residual in the original: magnitudes, changes and inner products."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.leaderboard.stack import stack_rule
from benchmarks.leaderboard.stack_rules import modulated, relative_l1
from benchmarks.leaderboard.subject import Subject


@dataclass(frozen=True, eq=False)
class StackTruth:
    """Of one batch of the original.

    Attributes:
        gram: [T, T] float64, inner products of the residuals of all steps.
        ratios: For each step the mean over tokens of the residual's magnitude over that at the step before; 1 at first.
        changes: For each step from the second on, how much the modulated input of the first block changed, and how
            much the residual did, by relative L1; None where the block's norm is not known.
    """

    gram: npt.NDArray[np.float64]
    ratios: tuple[float, ...]
    changes: tuple[tuple[float, float], ...] | None
    why_no_changes: str = ""

    def tea_polynomial(self, degree: int) -> tuple[float, ...]:
        """TeaCache's rescaling: from the change of the input to that of the residual."""
        if self.changes is None:
            raise NotImplementedError(self.why_no_changes)
        seen, wanted = zip(*self.changes, strict=True)
        return tuple(float(each) for each in np.polyfit(seen, wanted, degree))


class _Observer:
    """Skips nothing and keeps everything."""

    def __init__(self) -> None:
        self.residuals: list[Tensor] = []
        self.seen: list[Tensor] = []
        self.why = ""

    def skips(self, step: int, block: nn.Module, arguments: dict[str, Any]) -> bool:
        try:
            self.seen.append(modulated(block, arguments))
        except NotImplementedError as error:
            self.why = str(error)
        return False

    def residual(self, step: int) -> Tensor:
        raise AssertionError("nothing is skipped")

    def computed(self, step: int, residual: Tensor) -> None:
        self.residuals.append(residual)

    def reset(self) -> None:
        self.residuals, self.seen = [], []


@lru_cache(maxsize=4)
def _truth(subject: Subject, seeds: tuple[int, ...]) -> StackTruth:
    observer = _Observer()
    installed = stack_rule(subject, observer)
    installed.reset()
    with torch.no_grad():
        subject.run(installed.pipe, seeds, installed.steps)
    flat = torch.stack([each.flatten() for each in observer.residuals])
    gram = (flat @ flat.T).double().cpu().numpy()
    ratios = [1.0]
    for before, value in zip(observer.residuals, observer.residuals[1:], strict=False):
        ratios.append(float((value.norm(dim=-1) / (before.norm(dim=-1) + 1e-8)).mean()))
    changes = None
    if len(observer.seen) == len(observer.residuals):
        changes = tuple(
            (relative_l1(observer.seen[step], observer.seen[step - 1]),
             relative_l1(observer.residuals[step], observer.residuals[step - 1]))
            for step in range(1, len(observer.seen))
        )  # fmt: skip
    return StackTruth(gram, tuple(ratios), changes, observer.why)


def stack_truth(subject: Subject, seeds: Sequence[int]) -> StackTruth:
    """Run the original on seeds, once for each subject."""
    return _truth(subject, tuple(seeds))
