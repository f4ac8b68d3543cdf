"""Puts a loaded package into a diffusers pipeline and ties it to the pipeline's scheduler."""

from dataclasses import dataclass
from typing import Any

from soda_compile.acceleration.handle import HANDLE, require_free
from soda_compile.errors import OptionError, PlanError
from soda_compile.integrations.diffusers.schedule_fit import first_step, require_scheduler
from soda_compile.integrations.diffusers.scheduler_hook import SchedulerHook
from soda_compile.packages.denoiser import PackagedDenoiser
from soda_compile.runtime.clock import Clock


@dataclass(frozen=True, eq=False)
class Installation:
    """A package in a pipeline, and what was there before."""

    pipe: Any
    component: str
    original: Any
    denoiser: PackagedDenoiser
    hook: SchedulerHook

    def check(self, scheduler: Any) -> None:
        """Check the timesteps of the generation that begins.

        Raises:
            PlanError: They are not those of the package's plan.
        """
        first = first_step(self.denoiser.plan, scheduler)
        if first:
            raise PlanError(
                f"the package's plan covers the schedule from step {first} on only; a package runs all of it"
            )

    def remove(self) -> None:
        """Put the original denoiser back; called by ``soda_compile.restore(pipe)``."""
        self.hook.detach()
        self.denoiser.attach(None)
        setattr(self.pipe, self.component, self.original)


def install(pipe: Any, denoiser: PackagedDenoiser, component: str = "transformer") -> Any:
    """Make a pipeline use a package, with the scheduler telling the step.

    ``pipe.transformer = denoiser`` works too; then steps are counted, and wrong schedulers are noticed only where the
    denoiser's timesteps differ.

    Args:
        pipe: A diffusers pipeline.
        denoiser: What ``soda_compile.load`` gave.
        component: Name of the denoiser in the pipeline, which may be None there.

    Returns:
        The same pipeline. ``soda_compile.restore(pipe)`` undoes everything.

    Raises:
        OptionError: If the pipeline is accelerated already, or has no such component.
        PlanError: If the package was made for another scheduler; at ``set_timesteps`` if for other timesteps.
    """
    require_free(pipe)
    if not hasattr(pipe, component) or not hasattr(pipe, "scheduler"):
        raise OptionError(f"{type(pipe).__name__} has no {component} and scheduler to work with; name the component")
    require_scheduler(denoiser.plan, pipe.scheduler)
    hook = SchedulerHook(pipe.scheduler, Clock())
    installation = Installation(pipe, component, getattr(pipe, component), denoiser, hook)
    hook.check = installation.check
    hook.attach()
    denoiser.attach(hook.clock)
    setattr(pipe, component, denoiser)
    setattr(pipe, HANDLE, installation)
    return pipe
