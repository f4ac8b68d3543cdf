"""An accelerated pipeline: its denoisers by their plans, all driven by one noise scheduler."""

import functools
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from soda_compile.backend.entry import soda
from soda_compile.capture.forward import CompiledForward, ReplacedForward, replace_forward, restore_forward
from soda_compile.errors import OptionError
from soda_compile.integrations.base import Stage
from soda_compile.integrations.diffusers.branch_names import name_branches
from soda_compile.integrations.diffusers.denoisers import require_supported
from soda_compile.integrations.diffusers.framework import holders
from soda_compile.integrations.diffusers.group_offload import around_calls
from soda_compile.integrations.diffusers.schedule_fit import first_step
from soda_compile.integrations.diffusers.scheduler_hook import SchedulerHook
from soda_compile.plans.plan import Plan
from soda_compile.runtime.clock import Clock
from soda_compile.runtime.state import forget
from soda_compile.torch_internals.wrapped_tensors import flatten_inputs


@dataclass(eq=False)
class AcceleratedDenoiser:
    """One denoiser of a pipeline.

    Attributes:
        name: Its name in the pipeline.
        module: The model.
        stage: Its part of the schedule.
        options: Of the backend.
        plan: The plan of the present trajectory.
    """

    name: str
    module: torch.nn.Module
    stage: Stage
    options: Mapping[str, Any]
    plan: Plan | None = None
    _compiled: dict[Hashable, Callable[..., Any]] = field(default_factory=dict)
    _around: Callable[[], AbstractContextManager[None]] = nullcontext
    _forward: ReplacedForward | None = None
    _unname: Callable[[], None] | None = None

    def install(self) -> None:
        """Put itself in the place of the model's forward."""
        self._forward = replace_forward(self.module, self._call, holders)
        self._unname = name_branches(self.module, self.stage.clock)

    def remove(self) -> None:
        """Take back ``install`` and free the slots."""
        if self._forward is not None:
            restore_forward(self.module, self._forward)
        if self._unname is not None:
            self._unname()
        forget(flatten_inputs(list(self.module.parameters())))

    def prepare(self, plan: Plan, scheduler: Any) -> None:
        """Take the plan for the trajectory that begins now.

        Raises:
            PlanError: The plan does not fit the schedule.
            OptionError: The model was changed into something that cannot be accelerated.
        """
        self.stage.first = first_step(plan, scheduler)
        require_supported(self.name, self.module)
        self._around = around_calls(self.module)
        if self.plan is None or plan.digest != self.plan.digest:
            forget(flatten_inputs(list(self.module.parameters())))  # the slots of the other plan
        self.plan = plan

    def _call(self, *arguments: Any, **options: Any) -> Any:
        self.stage.place()
        assert self.plan is not None
        # One compiled function for each signature: Dynamo gives up when one has seen too many.
        key = (self.plan.digest, _signature((arguments, options)))
        if key not in self._compiled:
            settings = {**self.options, "plan": self.plan, "clock": self.stage.clock}
            backend = functools.partial(soda, options=settings)
            self._compiled[key] = CompiledForward(self.module, backend)
        with self._around():
            return self._compiled[key](*arguments, **options)


@dataclass(eq=False)
class Acceleration:
    """An accelerated pipeline: its hooks, and the plan of the present trajectory.

    Attributes:
        pipe: The pipeline.
        plans_for: Gives the plans for the scheduler as it is set, by component name, or says why there are none.
        hook: Drives the clock by the scheduler.
        denoisers: By component name.
    """

    pipe: Any
    plans_for: Callable[[Any], Mapping[str, Plan]]
    hook: SchedulerHook
    denoisers: dict[str, AcceleratedDenoiser]

    @classmethod
    def install(
        cls,
        pipe: Any,
        denoisers: Mapping[str, torch.nn.Module],
        plans_for: Callable[[Any], Mapping[str, Plan]],
        options: Mapping[str, Any],
    ) -> "Acceleration":
        """Tie the scheduler and replace the forwards; on an error nothing has changed.

        Raises:
            OptionError: If the scheduler or a denoiser is in use elsewhere.
        """
        hook = SchedulerHook(pipe.scheduler, Clock())
        made = {
            name: AcceleratedDenoiser(name, module, Stage(hook, Clock(restarts=True)), options)
            for name, module in denoisers.items()
        }
        acceleration = cls(pipe, plans_for, hook, made)
        hook.check = acceleration.prepare
        hook.attach()
        try:
            for denoiser in made.values():
                denoiser.install()
        except BaseException:
            acceleration.remove()
            raise
        return acceleration

    def remove(self) -> None:
        """Take back ``install``."""
        self.hook.detach()
        for denoiser in self.denoisers.values():
            denoiser.remove()

    def prepare(self, scheduler: Any) -> None:
        """Get everything ready for the trajectory that the scheduler begins, before its first step.

        Raises:
            OptionError: The pipeline's denoisers are others than they were.
            PlanError: There is no plan that fits.
        """
        for name, denoiser in self.denoisers.items():
            if getattr(self.pipe, name) is not denoiser.module:
                raise OptionError(
                    f"pipe.{name} was replaced after accelerate; call soda_compile.restore(pipe) and accelerate again"
                )
        plans = self.plans_for(scheduler)
        for name, denoiser in self.denoisers.items():
            denoiser.prepare(plans[name], scheduler)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise OptionError(
            f"an accelerated {type(self.pipe).__name__} cannot be copied; call soda_compile.restore(pipe) first"
        )


def _signature(value: Any) -> Hashable:
    """Return shapes and dtypes of all tensors in nested arguments."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.dtype)
    if isinstance(value, Mapping):
        return tuple((key, _signature(entry)) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_signature, value))
    return None
