"""Measures settings that have no plan in the generations that users run, and has them planned."""

import functools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from soda_compile.acceleration.searched_plans import SearchedPlans
from soda_compile.acceleration.setting import Setting
from soda_compile.errors import SodaError
from soda_compile.integrations.base import Stage
from soda_compile.integrations.diffusers.scheduler_hook import SchedulerHook
from soda_compile.ir.structure import Structure
from soda_compile.measure.error_accumulator import ErrorAccumulator
from soda_compile.measure.observation import Observation, observe, sensitivities
from soda_compile.plans.sensitivity import Sensitivity
from soda_compile.runtime.current import BRANCH

log = logging.getLogger(__name__)

MEMORY_BYTES = 2**30
"""Bound on past values, of all denoisers of a setting together."""

_present: ContextVar[ErrorAccumulator | None] = ContextVar("soda_compile_measured", default=None)


class Relay:
    """The observer that denoisers are compiled with once, for whatever setting is measured: see ``Observer``.

    Outside ``observing`` nothing is looked at.
    """

    wants_carries = False

    def start(self, structure: Structure) -> None:
        """Take the structure of the calls that follow."""
        if (errors := _present.get()) is not None:
            errors.start(structure)

    def begin_call(self, inputs: Mapping[str, Any]) -> None:
        """Take the caller's inputs."""
        if (errors := _present.get()) is not None:
            errors.begin_call(inputs)

    def record(self, region: int, values: Mapping[str, torch.Tensor]) -> None:
        """Take the values of one region."""
        if (errors := _present.get()) is not None:
            errors.record(region, values)


RELAY = Relay()


@contextmanager
def observing(observation: Observation) -> Iterator[None]:
    """Let the denoiser call inside, compiled with ``RELAY``, be measured."""
    if observation.stage is not None:
        observation.stage.place()
    observation.errors.clock.branch = BRANCH.name
    token = _present.set(observation.errors)
    try:
        yield
    finally:
        _present.reset(token)


@dataclass(frozen=True, eq=False)
class Watch:
    """A generation without a plan.

    Attributes:
        observations: By component name; none where it is not observed.
        reason: Why it has no plan.
        give_up: Ends the measurement of its setting, and takes a reason.
    """

    observations: Mapping[str, Observation]
    reason: str
    give_up: Callable[[str], None]


@dataclass(eq=False)
class _Measured:
    """One setting under measurement.

    Attributes:
        setting: The setting.
        observations: By component name.
        started: When it began, in seconds.
        steps: Of each denoiser in each generation that was seen.
        scheduler: Drives the generation that is observed now; dead where none is.
    """

    setting: Setting
    observations: Mapping[str, Observation]
    started: float
    steps: list[list[int]] = field(default_factory=list)
    scheduler: Callable[[], Any] = lambda: None


@dataclass(eq=False)
class Measurer:
    """Observes generations of settings without a plan, one at a time for each setting.

    Attributes:
        denoisers: By component name.
        generations: How many make a measurement.
        reach: Gives the longest time, in steps, that a value may be kept in generations of so many steps.
        done: Stores what was measured of a setting, and plans.
        less: Whether to look at a part of the values in each generation, which slows them down the less.
    """

    denoisers: Mapping[str, torch.nn.Module]
    generations: int
    reach: Callable[[int], int]
    done: Callable[[Setting, Mapping[str, Sensitivity]], None]
    less: bool = False
    _measured: dict[str, _Measured] = field(default_factory=dict)
    _failed: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, setting: Setting, hook: SchedulerHook) -> Watch:
        """Begin to observe a generation, unless another one of this setting is under way."""
        give_up = functools.partial(self._give_up, setting.key)
        with self._lock:
            if setting.key in self._failed:
                return Watch({}, self._failed[setting.key], give_up)
            measured = self._measured.get(setting.key)
            if measured is None:
                observations = observe(self.denoisers, self.reach(setting.steps), MEMORY_BYTES)
                for each in observations.values() if self.less else ():
                    each.errors.look_less(self.generations)
                measured = self._measured[setting.key] = _Measured(setting, observations, time.perf_counter())
            reason = (
                f"{setting.steps} steps are being measured, {len(measured.steps)} of {self.generations} generations "
                "are done; those after them are accelerated"
            )
            busy = measured.scheduler()
            if busy is not None and busy is not hook.scheduler:
                return Watch({}, reason, give_up)
            measured.scheduler = weakref.ref(hook.scheduler)
            for observation in measured.observations.values():
                observation.stage = Stage(hook, observation.errors.clock)
                observation.errors.begin(len(measured.steps))
            hook.ended = lambda: self._end(measured, hook)
            return Watch(measured.observations, reason, give_up)

    def _give_up(self, key: str, reason: str) -> None:
        with self._lock:
            if key in self._measured:
                self._fail(key, reason)

    def _end(self, measured: _Measured, hook: SchedulerHook) -> None:
        """Count a generation that was observed to its end; with the last one, hand over what was measured."""
        hook.ended = None
        with self._lock:
            key = measured.setting.key
            if self._measured.get(key) is not measured:
                return
            measured.scheduler = lambda: None
            measured.steps.append([each.errors.steps for each in measured.observations.values()])
            if measured.steps[-1] != measured.steps[0]:
                return self._fail(key, f"generations have different numbers of steps: {measured.steps}")
            if len(measured.steps) < self.generations:
                return None
            try:
                self.done(measured.setting, self._sensitivities(measured, hook))
                del self._measured[key]
            except SodaError as error:
                self._fail(key, str(error))

    def _sensitivities(self, measured: _Measured, hook: SchedulerHook) -> dict[str, Sensitivity]:
        weights, seconds = hook.step_weights(), time.perf_counter() - measured.started
        seeds, guidance = range(len(measured.steps)), measured.setting.guidance
        return sensitivities(measured.observations, hook, weights, seeds, guidance, seconds)

    def _fail(self, key: str, reason: str) -> None:
        del self._measured[key]
        self._failed[key] = f"it could not be measured: {reason}"
        log.warning("this setting is not measured, and runs without a plan: %s", reason)


def measuring_later(source: SearchedPlans, generations: int, *, less: bool = False) -> Callable[[SchedulerHook], Watch]:
    """Return what begins to measure settings without a plan, for the generations that begin under a scheduler.

    Args:
        source: Of plans.
        generations: How many make a measurement.
        less: See ``Measurer``.
    """
    measurer = Measurer(source.present.denoisers, generations, source.reach, source.add, less)
    return lambda hook: measurer.begin(source.present(hook), hook)
