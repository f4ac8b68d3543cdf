"""Rules that keep the outputs of attentions and feed-forwards, run in eager mode around the modules themselves.

FORA (arXiv 2407.01425) reuses them at a fixed interval, TaylorSeer (2503.06923) forecasts them by finite differences,
HiCache (2508.16984) does so in Hermite polynomials. Gates, norms and modulations are computed at every step, as in
the authors' code for DiT.
"""

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from benchmarks.leaderboard.forecasts import Basis, differences, predicted
from benchmarks.leaderboard.installed import Installed
from benchmarks.leaderboard.subject import Subject
from benchmarks.suite.runner import bytes_in


class Clock:
    """Counts the calls of a denoiser in a generation, from 0 on."""

    def __init__(self, model: nn.Module) -> None:
        self.step = -1
        model.register_forward_pre_hook(self._next)

    def _next(self, *_: Any) -> None:
        self.step += 1

    def reset(self) -> None:
        self.step = -1


class KeptBranch:
    """One module whose output is forecast at steps outside the mask."""

    def __init__(self, module: nn.Module, clock: Clock, mask: tuple[bool, ...], order: int, basis: Basis) -> None:
        self.original, self.clock, self.mask, self.order, self.basis = module.forward, clock, mask, order, basis
        self.last, self.factors = 0, list[list[Any]]()
        self.single = True
        module.forward = self.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        step = self.clock.step
        if not self.mask[step]:
            found = [predicted(each, step - self.last, self.basis) if each else None for each in self.factors]
            return found[0] if self.single else tuple(found)
        result = self.original(*args, **kwargs)
        self.single = not isinstance(result, tuple)
        values = [result] if self.single else list(result)
        before = self.factors or [[] for _ in values]
        self.factors = [
            [] if value is None else differences(value, old, step - self.last, self.order)
            for value, old in zip(values, before, strict=True)
        ]
        self.last = step
        return result

    def forget(self) -> None:
        self.last, self.factors = 0, []


def branch_rule(subject: Subject, mask: tuple[bool, ...], order: int, basis: Basis) -> Installed:
    """Keep all branches of a subject's denoiser.

    Raises:
        NotImplementedError: If no module has a name of a branch.
    """
    pipe = subject.fresh()
    model = getattr(pipe, subject.denoiser)
    clock = Clock(model)
    branches = [
        KeptBranch(module, clock, mask, order, basis)
        for name, module in model.named_modules()
        if re.fullmatch(subject.branches, name)
    ]
    if not branches:
        raise NotImplementedError(f"no module of {type(model).__name__} is named {subject.branches}")
    return Installed(pipe, subject.steps, _all(clock.reset, *(each.forget for each in branches)),
                     lambda: bytes_in([each.factors for each in branches]))  # fmt: skip


def _all(*calls: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        for call in calls:
            call()

    return run
