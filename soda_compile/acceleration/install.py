"""Puts a loaded package into a diffusers pipeline and ties it to the pipeline's scheduler."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from soda_compile.acceleration.driven import Driven
from soda_compile.acceleration.handle import HANDLE, require_free
from soda_compile.errors import OptionError, PlanError
from soda_compile.integrations.diffusers.drivers import driver
from soda_compile.integrations.diffusers.schedule_fit import first_step, require_scheduler
from soda_compile.integrations.diffusers.scheduler_hook import SchedulerHook
from soda_compile.integrations.diffusers.scheduler_ties import SchedulerTies
from soda_compile.packages.denoiser import PackagedDenoiser
from soda_compile.runtime.clock import Clock
from soda_compile.runtime.current import Outside, calling


@dataclass(eq=False)
class Installation:
    """A package in a pipeline, and what was there before."""

    pipe: Any
    component: str
    original: Any
    denoiser: PackagedDenoiser

    def __post_init__(self) -> None:
        self._ties: SchedulerTies[Driven] = SchedulerTies(self._driven)
        self._scheduler = self.pipe.scheduler

    def install(self) -> "Installation":
        """Tie the scheduler and put the package in the pipeline.

        Raises:
            OptionError: If the scheduler is tied already.
        """
        self._ties.tie(self._scheduler)
        self.denoiser.around = self._around
        setattr(self.pipe, self.component, self.denoiser)
        return self

    def remove(self) -> None:
        """Put the original denoiser back; called by ``soda_compile.restore(pipe)``."""
        self._ties.untie(self._scheduler)
        self.denoiser.around = nullcontext
        setattr(self.pipe, self.component, self.original)

    def _driven(self, scheduler: Any) -> Driven:
        return Driven(SchedulerHook.following(scheduler, Clock(), self._check))

    def _check(self, scheduler: Any) -> None:
        """Check the timesteps of the generation that begins.

        Raises:
            PlanError: They are not those of the package's plan.
        """
        first = first_step(self.denoiser.plan, scheduler)
        if first:
            raise PlanError(
                f"the package's plan covers the schedule from step {first} on only; a package runs all of it"
            )
        driven = self._ties.follower(scheduler)
        assert driven is not None
        driven.take({self.component: self.denoiser.plan}, {self.component: 0})

    @contextmanager
    def _around(self) -> Iterator[None]:
        driven = self._ties.follower(driver(self._ties.owns))
        generation = driven.call(self.component, self.denoiser.on_miss)[1] if driven else Outside(_NO_CALLER)
        with calling(generation):
            yield


_NO_CALLER = "the package is called by another pipeline than the one that it is installed in, or by none"


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
    installation = Installation(pipe, component, getattr(pipe, component), denoiser)
    setattr(pipe, HANDLE, installation.install())
    return pipe
