"""Ties the compiler to diffusers pipelines: the noise scheduler tells the step. Nothing is patched on classes."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from soda_compile.backend import soda
from soda_compile.clock import Clock
from soda_compile.errors import OptionError, PlanError
from soda_compile.forward import compile_forward, restore_forward
from soda_compile.options import check_options
from soda_compile.plans import Plan

DENOISERS = ("transformer", "unet")
_HANDLE = "_soda_compile"


@dataclass(eq=False)
class SchedulerTie:
    """Makes one scheduler object drive a clock: ``set_timesteps`` begins a trajectory, ``step`` ends a step.

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
    _hooked: dict[str, Any] = field(default_factory=dict)

    def tie(self) -> SchedulerTie:
        """Hooks this scheduler object; its class stays as it is."""
        set_timesteps, step = self.scheduler.set_timesteps, self.scheduler.step

        # Pipelines look at the signatures of both, which functools.wraps keeps.
        @functools.wraps(set_timesteps)
        def hooked_set_timesteps(*arguments: Any, **options: Any) -> Any:
            result = set_timesteps(*arguments, **options)
            if self.check is not None:
                self.check(self.scheduler)
            self.arguments = (arguments, options)
            self.clock.begin(len(self.scheduler.timesteps))
            return result

        @functools.wraps(step)
        def hooked_step(*arguments: Any, **options: Any) -> Any:
            result = step(*arguments, **options)
            self.clock.advance()
            return result

        self._hooked = {"set_timesteps": hooked_set_timesteps, "step": hooked_step}
        for name, hook in self._hooked.items():
            setattr(self.scheduler, name, hook)
        return self

    def untie(self) -> None:
        """Removes the hooks."""
        for name, hook in self._hooked.items():
            if self.scheduler.__dict__.get(name) is hook:
                delattr(self.scheduler, name)
        self._hooked = {}


@dataclass(frozen=True, eq=False)
class _Acceleration:
    tie: SchedulerTie
    denoiser: torch.nn.Module
    forward: Callable[..., Any]


def is_pipeline(value: Any) -> bool:
    """Whether the value looks like a diffusers pipeline: it has a scheduler and a denoiser."""
    return hasattr(value, "scheduler") and any(hasattr(value, name) for name in DENOISERS)


def denoiser_of(pipe: Any) -> torch.nn.Module:
    """The pipeline's denoiser.

    Raises:
        OptionError: If there is none, or more than one.
    """
    found = {
        name: getattr(pipe, name) for name in (*DENOISERS, "transformer_2") if getattr(pipe, name, None) is not None
    }
    if len(found) != 1:
        raise OptionError(
            f"{type(pipe).__name__} has {len(found)} denoisers ({', '.join(found) or 'no transformer, no unet'}); "
            "compile one by hand with torch.compile(denoiser, backend='soda') and soda_compile.trajectory"
        )
    denoiser: torch.nn.Module = next(iter(found.values()))
    return denoiser


def scheduler_digest(scheduler: Any) -> str:
    """Short hash of a scheduler's class and configuration."""
    return hashlib.sha256(json.dumps([type(scheduler).__name__, scheduler_config(scheduler)]).encode()).hexdigest()[:16]


def scheduler_config(scheduler: Any) -> dict[str, Any]:
    """The scheduler's configuration as plain JSON values, without what only names library versions."""
    config = {key: value for key, value in dict(scheduler.config).items() if not key.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(config, default=str, sort_keys=True))
    return plain


def accelerate(
    pipe: Any, plan: Plan | str, *, mode: str | None = None, inductor: Mapping[str, Any] | None = None
) -> Any:
    """Compiles a pipeline's denoiser by a plan and ties the step clock to the pipeline's scheduler.

    Args:
        pipe: A diffusers pipeline with one denoiser.
        plan: A plan, or the path of one.
        mode: A mode of ``torch.compile``.
        inductor: Settings for Inductor.

    Returns:
        The same pipeline. ``restore(pipe)`` undoes everything.

    Raises:
        OptionError: If the pipeline is accelerated already, or has not exactly one denoiser.
        PlanError: If the plan is for another scheduler; at ``set_timesteps`` if it is for other timesteps.
    """
    if hasattr(pipe, _HANDLE):
        raise OptionError(f"this {type(pipe).__name__} is accelerated already; call soda_compile.restore(pipe) first")
    denoiser = denoiser_of(pipe)
    clock = Clock()
    options = {"plan": plan, "clock": clock, "inductor": dict(inductor or {})}
    checked = check_options(options, mode).plan
    assert checked is not None
    _require_scheduler(checked, pipe.scheduler)
    backend = functools.partial(soda, mode=mode, options={**options, "plan": checked})
    forward = compile_forward(denoiser, backend)
    tie = SchedulerTie(pipe.scheduler, clock, functools.partial(_require_timesteps, checked)).tie()
    setattr(pipe, _HANDLE, _Acceleration(tie, denoiser, forward))
    return pipe


def restore(pipe: Any) -> Any:
    """Takes back what ``accelerate`` did.

    Raises:
        OptionError: If the pipeline is not accelerated.
    """
    if not hasattr(pipe, _HANDLE):
        raise OptionError(f"this {type(pipe).__name__} is not accelerated: there is nothing to restore")
    acceleration: _Acceleration = getattr(pipe, _HANDLE)
    acceleration.tie.untie()
    restore_forward(acceleration.denoiser, acceleration.forward)
    delattr(pipe, _HANDLE)
    return pipe


def _require_scheduler(plan: Plan, scheduler: Any) -> None:
    if plan.scheduler_digest is not None and plan.scheduler_digest != scheduler_digest(scheduler):
        raise PlanError(
            f"the plan was made for {plan.scheduler} with configuration {plan.scheduler_digest}, this pipeline has "
            f"{type(scheduler).__name__} with {scheduler_digest(scheduler)}; calibrate with this scheduler"
        )


def _require_timesteps(plan: Plan, scheduler: Any) -> None:
    timesteps = [float(value) for value in scheduler.timesteps]
    if len(timesteps) != plan.steps:
        raise PlanError(
            f"the plan is for {plan.steps} steps, the pipeline runs {len(timesteps)}; set num_inference_steps so that "
            "the scheduler has as many, or calibrate and plan for this number"
        )
    if plan.timesteps is not None:
        worst = max(range(plan.steps), key=lambda step: abs(timesteps[step] - plan.timesteps[step]))  # type: ignore[index]
        if abs(timesteps[worst] - plan.timesteps[worst]) > 1e-3 * max(1.0, abs(plan.timesteps[worst])):
            raise PlanError(
                f"the plan has timestep {plan.timesteps[worst]:g} at step {worst}, the scheduler {timesteps[worst]:g}; "
                "calibrate with the scheduler's present settings"
            )
