"""What is measured of one schedule of a model, and the plan made of it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from soda_compile.learning.schedule import Schedule, is_same
from soda_compile.measure.error_accumulator import ErrorAccumulator
from soda_compile.measure.gram import ErrorEntries
from soda_compile.measure.observation import Observation
from soda_compile.plans.plan import Plan
from soda_compile.plans.sensitivity import Sensitivity
from soda_compile.runtime.call_counter import CallCounter
from soda_compile.runtime.clock import Clock


@dataclass(eq=False)
class Lesson:
    """One schedule, measured in the generations that go by it.

    Attributes:
        schedule: The schedule.
        observation: What was measured so far.
        places: The step of each denoiser call of a generation.
        done: Generations that were observed to their end.
        busy: Whether one is observed now; errors are accumulated of one at a time.
        plan: The plan; None before there is one.
        failed: Why there will be none.
        working: Whether it is being planned and compiled.
        told: Whether users know that it is followed.
    """

    schedule: Schedule
    observation: Observation
    places: tuple[int, ...] = ()
    done: int = 0
    busy: bool = False
    plan: Plan | None = None
    failed: str = ""
    working: bool = False
    told: bool = False
    _started: float = field(default_factory=time.perf_counter)

    @classmethod
    def begin(cls, schedule: Schedule, places: Sequence[int], max_interval: int, generations: int) -> "Lesson":
        """Begin to measure a schedule in so many generations; nothing was observed yet."""
        errors = ErrorAccumulator(Clock(), CallCounter(schedule.calls_per_step), ErrorEntries(max_interval), 0)
        errors.look_less(generations)
        return cls(schedule, Observation(errors), tuple(places))

    @classmethod
    def known(cls, schedule: Schedule, plan: Plan) -> "Lesson":
        """Return one whose plan was stored."""
        lesson = cls.begin(schedule, (), 1, 1)
        lesson.plan, lesson.told = plan, True
        return lesson

    def step_of(self, call: int, timestep: float | None, step: int | None) -> int | None:
        """Return the step of a call of the generation under observation; None if the generation goes another way.

        Args:
            call: How many came before it.
            timestep: What the call was given, where that is known.
            step: Its step, where whoever opened the generation tells it.
        """
        if call >= len(self.places) or (step is not None and step != self.places[call]):
            return None
        due = self.places[call]
        if self.schedule.timesteps and (timestep is None or not is_same(timestep, self.schedule.timesteps[due])):
            return None
        return due

    def sensitivity(self) -> Sensitivity:
        """Return what was measured.

        Raises:
            SensitivityError: If the timesteps tell that calls were counted wrongly.
        """
        seconds = time.perf_counter() - self._started
        return self.observation.sensitivity(None, None, range(self.done), None, seconds)

    def forget(self) -> None:
        """Free what was kept to measure."""
        self.observation = Lesson.begin(self.schedule, (), 1, 1).observation
