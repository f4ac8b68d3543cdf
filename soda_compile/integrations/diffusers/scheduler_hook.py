"""Lets one diffusers noise scheduler drive a clock. Only the scheduler object is touched, not its class."""

import functools
import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from soda_compile.errors import OptionError
from soda_compile.integrations.diffusers.method_hook import MethodHook
from soda_compile.integrations.diffusers.step_weights import probe_step_weights
from soda_compile.runtime.clock import Clock

_METHODS = ("set_timesteps", "set_begin_index", "scale_model_input", "step")


@dataclass(eq=False)
class SchedulerHook:
    """``set_timesteps`` begins a trajectory, ``step`` ends a step.

    The clock's step is an index into ``scheduler.timesteps``. A trajectory that starts in the middle of them, as in
    image-to-image, is noticed by ``set_begin_index``, or by the timestep that ``scale_model_input`` or the first
    ``step`` is called with.

    Attributes:
        scheduler: The diffusers scheduler.
        clock: The clock.
        check: Called with the scheduler after its timesteps are set, before the trajectory begins.
        arguments: Arguments of the last ``set_timesteps`` call, positional and by keyword.
    """

    scheduler: Any
    clock: Clock
    check: Callable[[Any], None] | None = None
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    _hooks: list[MethodHook] = field(default_factory=list)
    _at_start: bool = False

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

    def attach(self) -> "SchedulerHook":
        """Attach to this scheduler object; its class stays as it is.

        Raises:
            OptionError: If another hook has it.
        """
        if any(isinstance(value, MethodHook) for value in vars(self.scheduler).values()):
            raise OptionError(
                f"this {type(self.scheduler).__name__} is tied already: if this pipeline is accelerated, call "
                "soda_compile.restore(pipe) first; if its scheduler is another's too, give it its own, "
                "pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)"
            )
        for name in _METHODS:
            method = getattr(self.scheduler, name, None)
            if method is not None:
                self._hooks.append(MethodHook(method, functools.partial(getattr(self, f"_{name}"), method)).attach())
        return self

    def detach(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.detach()
        self._hooks = []

    def _set_timesteps(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        result = method(*arguments, **options)
        if self.check is not None:
            self.check(self.scheduler)
        self.arguments = (arguments, options)
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
        result = method(*arguments, **options)
        self._at_start = False
        self.clock.advance()
        return result

    def _start_at(self, method: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Set the clock to the timestep of a call, before the first step has ended; later the clock knows better."""
        if not self._at_start or not self.clock.trajectory:
            return
        timestep = inspect.signature(method).bind_partial(*arguments, **options).arguments.get("timestep")
        timesteps = timesteps_of(self.scheduler)
        if timestep is not None and timesteps[self.clock.step] != float(timestep) and float(timestep) in timesteps:
            self.clock.step = timesteps.index(float(timestep))


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
