"""What one noise scheduler drives: the generation under way, and the part that each denoiser has in it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from soda_compile.acceleration.measuring import Watch
from soda_compile.errors import TrajectoryError
from soda_compile.integrations.base import Stage
from soda_compile.integrations.diffusers.scheduler_hook import SchedulerHook
from soda_compile.plans.plan import Plan
from soda_compile.runtime.clock import Clock
from soda_compile.runtime.current import BRANCH, Outside
from soda_compile.runtime.generation import Generation


@dataclass(eq=False)
class _Part:
    """The part that one denoiser has in the generation of a scheduler.

    Attributes:
        stage: Its part of the schedule.
        generation: The present generation; None before its first call.
    """

    stage: Stage
    generation: Generation | None = None

    def renewed(self) -> Generation:
        """Return the generation of the call that comes now.

        Raises:
            TrajectoryError: See ``Stage.place``.
        """
        if self.generation is None or self.stage.clock.trajectory != self.stage.hook.clock.trajectory:
            if self.generation is not None:
                self.generation.end()
            self.stage.clock = Clock(restarts=True)
            self.generation = Generation(self.stage.clock)
        self.stage.place()
        self.generation.clock.branch = BRANCH.name
        return self.generation


@dataclass(eq=False)
class Driven:
    """What one scheduler drives: the plans of its present trajectory, and the parts of the denoisers.

    Attributes:
        hook: Drives a clock by the scheduler.
        plans: By component name.
        reason: Why there are none.
        parts: By component name.
        watch: The present generation, if it is measured as it has no plan.
    """

    hook: SchedulerHook
    plans: Mapping[str, Plan] = field(default_factory=dict)
    reason: str = ""
    parts: dict[str, _Part] = field(default_factory=dict)
    watch: Watch | None = None

    def around(self, name: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a method of the scheduler, see ``SchedulerHook.around``."""
        return self.hook.around(name, method, *arguments, **options)

    def take(self, plans: Mapping[str, Plan], first: Mapping[str, int]) -> None:
        """Take the plans of the trajectory that begins now, and the step of the schedule where each begins."""
        for name, step in first.items():
            if name not in self.parts:
                self.parts[name] = _Part(Stage(self.hook, Clock()))
            self.parts[name].stage.first = step
        self.plans = dict(plans)

    def call(self, name: str, on_miss: str) -> tuple[Plan | None, Generation | Outside]:
        """Return the plan and the generation of the call of a denoiser that comes now."""
        if name not in self.plans:
            return None, Outside(self.reason or self._not_set)
        try:
            return self.plans[name], self.parts[name].renewed()
        except TrajectoryError as error:
            if on_miss == "error":
                raise
            return self.plans[name], Outside(str(error))

    @property
    def _not_set(self) -> str:
        return f"the timesteps of {self.hook.name} have not been set since it was tied; run the pipeline itself"
