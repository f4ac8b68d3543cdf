"""Lets one diffusers noise scheduler drive a clock."""

import hashlib
import inspect
import json
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from soda_compile.integrations.diffusers.noise_levels import noise_levels
from soda_compile.integrations.diffusers.scheduler_ties import SchedulerTies
from soda_compile.integrations.diffusers.step_weights import probe_step_weights
from soda_compile.runtime.clock import Clock


@dataclass(eq=False)
class SchedulerHook:
    """Lets a scheduler drive a clock: ``set_timesteps`` begins a trajectory, ``step`` ends a step.

    The clock's step is an index into ``scheduler.timesteps``. A trajectory that starts in the middle of them, as in
    image-to-image, is noticed by ``set_begin_index``, or by the timestep that ``scale_model_input`` or the first
    ``step`` is called with.

    Attributes:
        clock: The clock.
        check: Called with the scheduler after its timesteps are set, before the trajectory begins.
        arguments: Arguments of the last ``set_timesteps`` call, positional and by keyword.
        ended: Called after the last step of a trajectory.
        stepped: Called after each step with what it returned.
        stepping: Called before each step with its arguments by name.
    """

    clock: Clock
    check: Callable[[Any], object] | None = None
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    ended: Callable[[], None] | None = None
    stepped: Callable[[Any], None] | None = None
    stepping: Callable[[Mapping[str, Any]], None] | None = None
    _scheduler: Callable[[], Any] = lambda: None
    _ties: "SchedulerTies[SchedulerHook] | None" = None
    _at_start: bool = False

    @classmethod
    def following(cls, scheduler: Any, clock: Clock, check: Callable[[Any], object] | None = None) -> "SchedulerHook":
        """Return the hook of a scheduler that is tied; it does not keep the scheduler alive."""
        return cls(clock, check, _scheduler=weakref.ref(scheduler))

    @classmethod
    def attached(cls, scheduler: Any, clock: Clock) -> "SchedulerHook":
        """Tie a scheduler for a while, and return its hook; copies of it drive nothing.

        Raises:
            OptionError: If it is tied already.
        """
        hook = cls.following(scheduler, clock)
        ties = SchedulerTies(lambda other: hook if other is scheduler else cls.following(other, Clock()))
        ties.tie(scheduler)
        hook._ties, hook._scheduler = ties, lambda: scheduler
        return hook

    @property
    def scheduler(self) -> Any:
        """Return the scheduler."""
        return self._scheduler()

    @property
    def name(self) -> str:
        """Return the scheduler's class name."""
        return type(self.scheduler).__name__

    @property
    def config(self) -> dict[str, Any]:
        """Return the scheduler's configuration as plain JSON values."""
        return scheduler_config(self.scheduler)

    @property
    def digest(self) -> str:
        """Return a short hash of the scheduler's class and configuration."""
        return scheduler_digest(self.scheduler)

    @property
    def timesteps(self) -> list[float]:
        """Return the timesteps that are set."""
        return timesteps_of(self.scheduler)

    def step_weights(self) -> npt.NDArray[np.float64]:
        """Probe how far an error in the denoiser's output at each step moves the sample; see ``probe_step_weights``.

        Raises:
            SensitivityError: If the scheduler cannot be run again over the same timesteps.
        """
        return probe_step_weights(self.scheduler, *self.arguments)

    def noise_levels(self) -> tuple[float, ...]:
        """Probe for the share of noise at each step; see ``noise_levels.noise_levels``.

        Raises:
            SensitivityError: If the scheduler does not tell.
        """
        return noise_levels(self.scheduler, *self.arguments)

    def detach(self) -> None:
        """Leave the scheduler as it was."""
        if self._ties is not None:
            self._ties.untie(self.scheduler)

    def around(self, name: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a method of the scheduler, and move the clock with it."""
        follow: Callable[..., Any] = getattr(self, f"_{name}")
        return follow(method, *arguments, **options)

    def _set_timesteps(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        result = method(*arguments, **options)
        self.arguments = (arguments, options)
        if self.check is not None:
            self.check(self.scheduler)
        timesteps = timesteps_of(self.scheduler)
        self.clock.begin(len(timesteps), tuple(timesteps))
        self._at_start = True
        return result

    def _set_begin_index(self, method: Callable[..., Any], begin_index: int = 0) -> Any:
        if self._at_start:
            self.clock.step = int(begin_index)
        return method(begin_index)

    def _scale_model_input(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self._start_at(method, arguments, options)
        return method(*arguments, **options)

    def _step(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self._start_at(method, arguments, options)
        if self.stepping is not None:
            self.stepping(inspect.signature(method).bind_partial(*arguments, **options).arguments)
        result = method(*arguments, **options)
        self._at_start = False
        self.clock.advance()
        if self.stepped is not None:
            self.stepped(result)
        if self.ended is not None and self.clock.step == self.clock.steps:
            self.ended()
        return result

    def _start_at(self, method: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Set the clock to the timestep of a call, before the first step has ended; later the clock knows better."""
        if not self._at_start or not self.clock.trajectory:
            return
        timestep = inspect.signature(method).bind_partial(*arguments, **options).arguments.get("timestep")
        if timestep is None:
            return
        timestep, timesteps = float(timestep), timesteps_of(self.scheduler)
        if timestep in timesteps and timesteps[self.clock.step] != timestep:
            self.clock.step = timesteps.index(timestep)


def timesteps_of(scheduler: Any) -> list[float]:
    """Return the scheduler's timesteps as numbers, read at once where they are on a device."""
    return [float(value) for value in torch.as_tensor(scheduler.timesteps).tolist()]


def scheduler_digest(scheduler: Any) -> str:
    """Return a short hash of a scheduler's class and configuration."""
    return hashlib.sha256(json.dumps([type(scheduler).__name__, scheduler_config(scheduler)]).encode()).hexdigest()[:16]


def scheduler_config(scheduler: Any) -> dict[str, Any]:
    """Return the scheduler's configuration as plain JSON values, without what only names library versions."""
    config = {key: value for key, value in dict(scheduler.config).items() if not key.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(config, default=str, sort_keys=True))
    return plain
