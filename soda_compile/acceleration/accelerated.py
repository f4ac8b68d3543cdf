"""An accelerated pipeline: its denoisers by their plans, each generation driven by its own noise scheduler."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from soda_compile.acceleration.driven import Driven
from soda_compile.acceleration.measuring import Watch
from soda_compile.acceleration.shared_denoiser import Member, shared_denoiser
from soda_compile.errors import OptionError, PlanError
from soda_compile.integrations.diffusers.denoisers import require_supported
from soda_compile.integrations.diffusers.schedule_fit import first_step
from soda_compile.integrations.diffusers.scheduler_hook import SchedulerHook
from soda_compile.integrations.diffusers.scheduler_ties import SchedulerTies
from soda_compile.plans.plan import Plan
from soda_compile.runtime.clock import Clock


@dataclass(eq=False)
class Acceleration:
    """An accelerated pipeline.

    Attributes:
        pipe: The pipeline.
        plans_for: Gives the plans for the generation that a scheduler begins, by component name, or says why there
            are none.
        denoisers: Those of the pipeline when it was accelerated, by component name.
        options: Of the backend.
        measure: Begins to measure a setting without a plan, in the generation that begins under a scheduler; None where
            such settings stay without one.
        compiled_beside: Whether generations go on without a plan while a thread compiles it.
    """

    pipe: Any
    plans_for: Callable[[SchedulerHook], Mapping[str, Plan]]
    denoisers: Mapping[str, torch.nn.Module]
    options: Mapping[str, Any]
    measure: Callable[[SchedulerHook], Watch] | None = None
    compiled_beside: bool = False
    members: dict[str, Member] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._ties: SchedulerTies[Driven] = SchedulerTies(self._driven)
        self._scheduler = self.pipe.scheduler

    def install(self) -> "Acceleration":
        """Tie the scheduler and replace the forwards; on an error nothing has changed.

        Raises:
            OptionError: If the scheduler or a denoiser is in use elsewhere.
        """
        self._ties.tie(self._scheduler)
        try:
            for name, module in self.denoisers.items():
                self.members[name] = shared_denoiser(module).join(
                    Member(name, self, dict(self.options), self.compiled_beside)
                )
        except BaseException:
            self.remove()
            raise
        return self

    def remove(self) -> None:
        """Take back ``install``."""
        self._ties.untie(self._scheduler)
        for member in self.members.values():
            member.leave()
        self.members.clear()

    def driven(self, scheduler: Any) -> Driven | None:
        """Return what a scheduler drives; None if it is not the pipeline's, nor a copy of it."""
        return self._ties.follower(scheduler)

    def _driven(self, scheduler: Any) -> Driven:
        return Driven(SchedulerHook.following(scheduler, Clock(), self._prepare))

    def _prepare(self, scheduler: Any) -> None:
        """Get everything ready for the trajectory that a scheduler begins, before its first step.

        Raises:
            PlanError: There is no plan that fits, and misses are errors.
            OptionError: The denoisers are others than they were.
        """
        driven = self.driven(scheduler)
        assert driven is not None
        driven.plans, driven.watch = {}, None
        self._require_denoisers()
        try:
            plans = self.plans_for(driven.hook)
            first = {name: first_step(plans[name], scheduler) for name in self.denoisers}
        except PlanError as error:
            if self.options.get("on_miss") == "error":
                raise
            driven.reason = str(error)
            if self.measure is not None:
                driven.watch = self.measure(driven.hook)
                driven.reason = driven.watch.reason
            return
        waiting = [name for name in self.denoisers if not self.members[name].ready(plans[name])]
        if not waiting:
            driven.take(plans, first)
        else:
            driven.reason = "the plan is being compiled; generations after that follow it"

    def _require_denoisers(self) -> None:
        for name, module in self.denoisers.items():
            if getattr(self.pipe, name) is not module:
                raise OptionError(
                    f"pipe.{name} was replaced after accelerate; call soda_compile.restore(pipe) and accelerate again"
                )
            require_supported(name, module)
            shared_denoiser(module).prepare()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise OptionError(
            f"an accelerated {type(self.pipe).__name__} cannot be copied with its denoisers; call "
            "soda_compile.restore(pipe) first. For a request, copy.copy(pipe) and give the copy a copy of the scheduler"
        )

    def __reduce__(self) -> Any:
        raise OptionError(
            f"an accelerated {type(self.pipe).__name__} cannot be pickled; call soda_compile.restore(pipe) first"
        )
