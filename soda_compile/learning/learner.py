"""What is known of the generations of one model, and whether the one that begins is observed, planned or neither."""

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol
from weakref import WeakKeyDictionary

from soda_compile.acceleration.say import say
from soda_compile.learning.beginnings import Beginnings
from soda_compile.learning.lesson import Lesson
from soda_compile.learning.schedule import Call, Numbers, schedule_of
from soda_compile.learning.wish import Wish
from soda_compile.runtime.counting import caller
from soda_compile.runtime.generation import Generation
from soda_compile.runtime.misses import Miss
from soda_compile.runtime.statistics import ModelStatistics

MOST_LESSONS = 8  # schedules that are measured; past values of each are kept meanwhile
MOST_CALLS = 4096  # of one generation that nothing tells the end of

UNTOLD = (
    "generations cannot be told apart: no trajectory is open, and no number among the inputs runs one way and starts "
    "again. Nothing is measured; put each generation inside `with soda_compile.trajectory(model):`"
)


class Ready(Protocol):
    """What a graph is asked before a generation follows a plan."""

    def __call__(self, lesson: Lesson) -> bool:
        """Return whether the graph can follow the plan of a schedule now; where not, it is being compiled."""


@dataclass(eq=False)
class UnderWay:
    """A generation under way.

    Attributes:
        how: ``planned``: by the plan of ``lesson``; ``observed``: ``lesson`` is measured in it; or ``plain``.
        lesson: Its schedule, as far as it is expected.
        beginnings: Tells where its caller's next one begins.
        calls: Its calls so far; empty where it is planned, and once they have told its schedule.
    """

    how: Literal["plain", "observed", "planned"]
    lesson: Lesson | None
    beginnings: Beginnings
    calls: list[Call] = field(default_factory=list)


@dataclass(eq=False)
class Learner:
    """Decides for each generation of one model. What one has shown its schedule to be is expected of the next.

    Attributes:
        wish: What is asked for.
        statistics: Of the model.
        lessons: All schedules that were seen.
        latest: The one that the next generation is expected to have; None where that is unknown.
        timestep: Name of the number among the inputs that is the timestep, once it is known.
    """

    wish: Wish
    statistics: ModelStatistics
    lessons: list[Lesson] = field(default_factory=list)
    latest: Lesson | None = None
    timestep: str | None = None
    _wavering: set[str] = field(default_factory=set)
    _opened: WeakKeyDictionary[Generation, UnderWay] = field(default_factory=WeakKeyDictionary)
    _counted: WeakKeyDictionary[object, UnderWay] = field(default_factory=WeakKeyDictionary)
    _unended: list[tuple[weakref.ref[Generation], UnderWay]] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def place(self, generation: Generation | None, read: Callable[[], Numbers], ready: Ready) -> UnderWay:
        """Return the generation of the call that comes now.

        Args:
            generation: The one that is open around the call, if there is one.
            read: Gives the numbers among the inputs of the call.
            ready: Asks the called graph.
        """
        known = self._counted.get(caller()) if generation is None else self._opened.get(generation)
        if known is not None and known.how == "planned" and known.lesson is self.latest:
            return known  # nothing is left to learn
        numbers = read()
        with self._lock:
            beginnings = known.beginnings if known is not None else Beginnings(self._wavering)
            begins = beginnings.begins(numbers)
            if known is None or (generation is None and begins):
                known = self._begin(generation, known, beginnings, ready)
            if known.how != "planned":
                step = None if generation is None or generation.clock.automatic else generation.clock.step
                known.calls.append(Call(numbers, step))
                self._check_length(known)
            return known

    def _begin(
        self, generation: Generation | None, before: UnderWay | None, beginnings: Beginnings, ready: Ready
    ) -> UnderWay:
        if before is not None:
            self._end(before)
        for reference, each in [entry for entry in self._unended if (found := entry[0]()) is None or found.ended]:
            self._unended.remove((reference, each))
            self._end(each)
        lesson = self._expected(generation)
        under_way = UnderWay(self._how(lesson, ready), lesson, beginnings)
        if lesson is not None and under_way.how == "planned" and not lesson.told:
            lesson.told = True
            say(f"generations of {lesson.schedule.steps} steps follow the plan from here on")
        if generation is None:
            self._counted[caller()] = under_way
        else:
            self._opened[generation] = under_way
            self._unended.append((weakref.ref(generation), under_way))
        if under_way.how == "observed" and lesson is not None:
            lesson.busy = True
            lesson.observation.errors.begin(lesson.done)
        return under_way

    def _expected(self, generation: Generation | None) -> Lesson | None:
        given = generation.clock.schedule if generation is not None else None
        if isinstance(given, tuple):
            return next((each for each in self.lessons if each.schedule.agrees(given)), None)
        return self.latest

    def _how(self, lesson: Lesson | None, ready: Ready) -> Literal["plain", "observed", "planned"]:
        if lesson is None or lesson.failed or lesson.working:
            return "plain"
        if lesson.plan is not None:
            return "planned" if ready(lesson) else "plain"
        return "plain" if lesson.busy or lesson.done >= self.wish.generations else "observed"

    def _end(self, under_way: UnderWay) -> None:
        """Learn from a generation that has ended what its schedule was."""
        if under_way.how == "observed":
            self.give_up(under_way)
        if not under_way.calls:
            return
        found = under_way.beginnings.timestep or self.timestep
        schedule, places = schedule_of(under_way.calls, found)
        under_way.calls.clear()
        if schedule.timesteps:
            self.timestep = found
        self.latest = next((each for each in self.lessons if each.schedule == schedule), None)
        if self.latest is None and len(self.lessons) < MOST_LESSONS:
            if not any(each.plan or each.done for each in self.lessons):
                say(
                    f"no plan is stored for this denoiser at {schedule.steps} steps: {self.wish.generations} "
                    "generations are observed, and later ones accelerated"
                )
            self.latest = Lesson.begin(schedule, places, self.wish.reach(schedule.steps), self.wish.generations)
            self.lessons.append(self.latest)

    def observed_step(self, under_way: UnderWay) -> int | None:
        """Return the step of the call that was placed last; None if the generation goes another way than expected."""
        lesson, call = under_way.lesson, under_way.calls[-1]
        assert lesson is not None
        timestep = None if self.timestep is None else call.numbers.get(self.timestep)
        step = lesson.step_of(len(under_way.calls) - 1, timestep, call.step)
        if step is None:
            self.give_up(under_way)
        return step

    def give_up(self, under_way: UnderWay, reason: str = "") -> None:
        """Observe a generation no longer; for a reason, also no other of its schedule."""
        with self._lock:
            under_way.how = "plain"
            if under_way.lesson is not None:
                under_way.lesson.busy = False
                if reason:
                    self.fail(under_way.lesson, reason)

    def fail(self, lesson: Lesson, reason: str) -> None:
        """Leave a schedule without a plan."""
        lesson.failed, lesson.working = reason, False
        lesson.forget()
        self.statistics.say("not planned", f"generations of {lesson.schedule.steps} steps stay unaccelerated: {reason}")

    def count(self, under_way: UnderWay) -> bool:
        """Count an observed generation if its last call was made; return whether it was the last one needed."""
        lesson = under_way.lesson
        with self._lock:
            if lesson is None or len(under_way.calls) < len(lesson.places) or under_way.how != "observed":
                return False
            under_way.how, lesson.busy = "plain", False
            lesson.done += 1
            lesson.working = lesson.done >= self.wish.generations
            return lesson.working

    def missed(self, miss: Miss) -> Miss:
        """Learn that a generation does not go as its plan expects: the next one is looked at anew.

        Returns:
            What the call counts as: what users should do about it is nothing, where the next ones are planned for.
        """
        if miss.kind not in ("timestep", "steps"):
            return miss
        with self._lock:
            if self.latest is not None and self.latest.plan is not None:
                self.latest = None
        return Miss("learning", "the generation goes another way than the one before; the next ones are watched")

    def _check_length(self, under_way: UnderWay) -> None:
        if len(under_way.calls) > MOST_CALLS:
            under_way.calls.clear()
            if under_way.beginnings.timestep is None:
                self.statistics.say("untold", UNTOLD)

    def stored(self, lessons: Sequence[Lesson]) -> None:
        """Take schedules whose plans were stored, the newest first."""
        self.lessons.extend(lessons)
        self.latest = next(iter(lessons), None)
