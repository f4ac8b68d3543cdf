"""Looks at generations when they begin: at all of a measurement, or at one that is broken off before its first step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from soda_compile.integrations.diffusers.framework import Diffusers
from soda_compile.integrations.diffusers.scheduler_hook import SchedulerHook
from soda_compile.runtime.clock import Clock


class _Begun(BaseException):
    """A generation has begun, and need not go on; no ``except Exception`` of a pipeline takes it."""


@dataclass(frozen=True)
class Watching(Diffusers):
    """Diffusers, with a look at each generation when its timesteps are set.

    Attributes:
        begun: Takes the hook of the scheduler.
    """

    begun: Callable[[SchedulerHook], object]

    def attach(self, sampler: Any) -> SchedulerHook:
        """Let a scheduler drive a clock of its own; see ``Diffusers.attach``."""
        hook = super().attach(sampler)
        hook.check = lambda scheduler: self.begun(hook)
        return hook


def begin(scheduler: Any, generate: Callable[[int], Any], begun: Callable[[SchedulerHook], object]) -> None:
    """Let one generation begin, and break it off when its timesteps are set.

    Prompts are encoded until then, but no denoiser is called, and torch's random state on the host stays.

    Args:
        scheduler: The pipeline's.
        generate: Runs one generation from a seed.
        begun: Takes the hook of the scheduler, whose timesteps are set.

    Raises:
        OptionError: If the scheduler is tied already.
    """

    def stop(hook: SchedulerHook) -> None:
        begun(hook)
        raise _Begun

    hook = SchedulerHook.attached(scheduler, Clock())
    hook.check = lambda scheduler: stop(hook)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            generate(0)
    except _Begun:
        pass
    finally:
        hook.detach()
