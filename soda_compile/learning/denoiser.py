"""One graph of a model that learns: run as it is, observed, or by a plan, as each generation began."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from soda_compile.acceleration.beside import compile_beside, uncounted
from soda_compile.acceleration.measuring import RELAY, observing
from soda_compile.acceleration.say import say
from soda_compile.backend.by_size import BySize
from soda_compile.backend.options import Options
from soda_compile.backend.sized_graph import SizedGraph
from soda_compile.errors import SodaError
from soda_compile.learning.learner import Learner, UnderWay
from soda_compile.learning.lesson import Lesson
from soda_compile.learning.planning import plan_for
from soda_compile.learning.schedule import Numbers, Schedule
from soda_compile.learning.stored import Stored
from soda_compile.learning.wish import Wish
from soda_compile.measure.error_accumulator import number_of
from soda_compile.measure.gram import Floats
from soda_compile.measure.probing import Probing
from soda_compile.measure.profiling import time_rounds
from soda_compile.runtime.batching import Together
from soda_compile.runtime.clock import Clock
from soda_compile.runtime.current import Outside, current_generation
from soda_compile.runtime.misses import Miss
from soda_compile.runtime.per_model import PerModel
from soda_compile.runtime.statistics import statistics_of

log = logging.getLogger(__name__)

_learners: PerModel[dict[Wish, Learner]] = PerModel(dict)
_lock = threading.Lock()
ROUNDS = 7  # of timing, where times are asked for


@dataclass(eq=False)
class LearningDenoiser:
    """Called by Dynamo with the graph's inputs in order, from any number of threads.

    Attributes:
        wish: What is asked for.
        graph: What is compiled.
        options: Of the backend, without a plan.
        weights: Indices of the parameters; the first tells which model is called.
        candidates: Names of the inputs that may hold the timestep, by index.
        unplanned: The graph without a plan; compiled at its first call, if it comes to that.
    """

    wish: Wish
    graph: SizedGraph
    options: Options
    weights: tuple[int, ...]
    candidates: Mapping[int, str]
    unplanned: Callable[..., Any] = field(init=False)
    _observed: BySize = field(init=False)
    _planned: dict[str, BySize] = field(default_factory=dict, init=False)
    _compiling: set[Schedule] = field(default_factory=set, init=False)
    _used: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.unplanned = self.graph.unplanned(self.options)
        self._observed = self.graph.by_size(replace(self.options, observer=RELAY))

    def __call__(self, *inputs: Any) -> Any:
        """Run the graph."""
        parameter = inputs[self.weights[0]]
        learner = self.learner(inputs)
        generation = current_generation(parameter)
        if isinstance(generation, Outside | Together):
            return self._shared(learner, inputs)
        under_way = learner.place(
            generation, lambda: self._numbers(inputs), lambda lesson: self._ready(lesson, learner, inputs)
        )
        self._used = True
        if under_way.how == "planned" and under_way.lesson is not None and under_way.lesson.plan is not None:
            return self._by_plan(under_way.lesson, learner)(*inputs)
        reason = f"generations are {'measured' if under_way.how == 'observed' else 'watched'}, to plan for them"
        learner.statistics.note(generation, Miss("learning", reason))
        return self._observe(learner, under_way, inputs) if under_way.how == "observed" else self.unplanned(*inputs)

    def learner(self, inputs: Sequence[Any]) -> Learner:
        """Return what learns about the model with these weights; the first time, look at what is stored."""
        parameter = inputs[self.weights[0]]
        learners = _learners.of(parameter)
        if self.wish not in learners:
            with _lock:
                if self.wish not in learners:
                    learner = Learner(self.wish, statistics_of(parameter))
                    learner.stored(self._stored(inputs).lessons(self.wish))
                    learners[self.wish] = learner
        return learners[self.wish]

    def _stored(self, inputs: Sequence[Any]) -> Stored:
        return Stored.of(self.wish, [inputs[index] for index in self.weights])

    def _numbers(self, inputs: Sequence[Any]) -> Numbers:
        found = {name: number_of(inputs[index]) for index, name in self.candidates.items()}
        return {name: number for name, number in found.items() if number is not None}

    def _shared(self, learner: Learner, inputs: Sequence[Any]) -> Any:
        """Run a call that belongs to several generations, or to none."""
        lesson = learner.latest
        if lesson is not None and lesson.plan is not None and self._ready(lesson, learner, inputs):
            return self._by_plan(lesson, learner)(*inputs)
        return self.unplanned(*inputs)

    def _observe(self, learner: Learner, under_way: UnderWay, inputs: Sequence[Any]) -> Any:
        lesson, step = under_way.lesson, learner.observed_step(under_way)
        if lesson is None or step is None:
            return self.unplanned(*inputs)
        lesson.observation.errors.clock.step = step
        try:
            with observing(lesson.observation):
                outputs = self._observed(*inputs)
        except SodaError as error:  # whatever cannot be measured runs all the same
            learner.give_up(under_way, str(error))
            return self.unplanned(*inputs)
        if learner.count(under_way):
            self._start(learner, lesson, inputs)
        return outputs

    def _by_plan(self, lesson: Lesson, learner: Learner) -> BySize:
        plan = lesson.plan
        assert plan is not None
        if plan.digest not in self._planned:
            options = replace(self.options, plan=plan, missed=learner.missed)
            self._planned.setdefault(plan.digest, self.graph.by_size(options))
        return self._planned[plan.digest]

    def _ready(self, lesson: Lesson, learner: Learner, inputs: Sequence[Any]) -> bool:
        """Return whether this graph can follow a plan; where it ran without one so far, it is compiled beside."""
        if not self._used or self._by_plan(lesson, learner).serves(inputs):
            return True
        self._start(learner, lesson, inputs)
        return not self.wish.background

    def _start(self, learner: Learner, lesson: Lesson, inputs: Sequence[Any]) -> None:
        """Plan, if that is not done, and compile this graph by the plan, in a thread if that is asked for."""
        with _lock:
            if lesson.schedule in self._compiling:
                return
            self._compiling.add(lesson.schedule)

        def failed(error: Exception) -> None:
            if not isinstance(error, SodaError):
                log.error("the plan of a denoiser could not be made", exc_info=error)
            learner.fail(lesson, str(error) if isinstance(error, SodaError) else f"{type(error).__name__}: {error}")

        def done() -> None:
            lesson.working = False
            self._compiling.discard(lesson.schedule)

        compile_beside(lambda: self._work(learner, lesson, inputs), failed, done, thread=self.wish.background)

    def _work(self, learner: Learner, lesson: Lesson, inputs: Sequence[Any]) -> None:
        if lesson.plan is None:
            sensitivity, structure = lesson.sensitivity(), lesson.observation.errors.structure
            assert structure is not None
            plan = plan_for(self.wish, sensitivity, structure, lambda probing: self._times(probing, inputs))
            where = self._stored(inputs).save(self.wish.request, lesson.schedule, sensitivity, plan)
            share = "" if plan.flop_ratio is None else f", {plan.flop_ratio:.0%} of the FLOPs"
            say(f"new plan for {plan.steps} steps{share}{where}; it is compiled, and later generations follow it")
            lesson.forget()
            lesson.plan = plan
        self._by_plan(lesson, learner).prepare(inputs)

    def _times(self, probing: Probing, inputs: Sequence[Any]) -> Floats:
        """Time the steps of probes on the inputs of a call, in microseconds, [rounds, steps]."""
        run = self.graph.by_size(replace(self.options, plan=probing.plan))
        return time_rounds(lambda: run(*inputs), lambda: uncounted(Clock(automatic=True)), probing, ROUNDS)
