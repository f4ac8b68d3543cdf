"""The compiled denoiser: each call finds its generation and its step there, and runs that step's calls."""

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from soda_compile.compiler.conditioning_stage import ConditioningStage
from soda_compile.compiler.constant_stage import ConstantStage
from soda_compile.compiler.program import Program
from soda_compile.compiler.slot_samples import SampleSlot
from soda_compile.errors import TrajectoryError
from soda_compile.plans.plan import Plan
from soda_compile.plans.resume import resume_at
from soda_compile.runtime.batching import Together
from soda_compile.runtime.branches import Branches, BranchState
from soda_compile.runtime.conditioning_cache import Conditions
from soda_compile.runtime.constant_cache import compute
from soda_compile.runtime.counting import Counted, counted_generations
from soda_compile.runtime.current import Outside, current_generation
from soda_compile.runtime.drift import Reading
from soda_compile.runtime.execution import run_once, run_owned
from soda_compile.runtime.generation import Generation
from soda_compile.runtime.misses import Miss
from soda_compile.runtime.placing import find_branch, is_at
from soda_compile.runtime.slots import SlotPool, new_registers
from soda_compile.runtime.statistics import ModelStatistics, RegionCounts, statistics_of
from soda_compile.runtime.watchpoints import Watchpoint, keeps_between, watchpoints

OnMiss = Literal["plain", "error"]


@dataclass(frozen=True, eq=False)
class PlannedProgram:
    """A program, and what its regions do.

    Attributes:
        program: The compiled plan.
        regions: For each step.
        watchpoints: What is compared at anchors, by step.
        keeps: For each step between anchors, whether anything is kept there.
    """

    program: Program
    regions: tuple[RegionCounts, ...]
    watchpoints: Mapping[int, Watchpoint]
    keeps: Mapping[int, bool]

    @classmethod
    def of(cls, program: Program, plan: Plan) -> "PlannedProgram":
        """Count the actions of a plan."""
        steps = zip(*plan.actions, strict=True)
        regions = tuple(tuple(Counter(action.kind for action in step).items()) for step in steps)
        return cls(program, regions, watchpoints(program, plan), keeps_between(plan))


@dataclass(frozen=True, eq=False)
class PlannedDenoiser:
    """Runs a program; called by Dynamo with the graph's inputs in order, from any number of threads.

    Attributes:
        program: The compiled plan.
        plan: The plan.
        model_key: Index of an input that is a parameter: it tells which model is called.
        timestep: Index of the input that carries the timestep, if the plan knows it.
        build: Compiles another plan for the same graph; only what its variants do not share is compiled anew. None
            where nothing can be compiled.
        on_miss: What a call that the plan does not cover does: ``plain`` computes everything, ``error`` raises.
        missed: Told of such calls, by whoever can plan for them; returns what they count as.
        pool: Hands out slots.
        constants: Computes further inputs of the program, once in a generation; None if there are none.
        conditioning: Computes those after them, which follow from the timestep; None if there are none.
        compile_seconds: Time that compiling took; None for what was compiled ahead of time.
        samples: Tells where the samples of a batch lie in the slots of ``program``.
        guard: Error of forecasts at an anchor, over the expected one, above which the steps behind it compute
            everything; None for no guard.
    """

    program: Program
    plan: Plan
    model_key: int
    timestep: int | None
    build: Callable[[Plan], Program] | None
    on_miss: OnMiss = "plain"
    missed: Callable[[Miss], Miss] | None = None
    pool: SlotPool = field(default_factory=SlotPool)
    constants: ConstantStage | None = None
    conditioning: ConditioningStage | None = None
    compile_seconds: float | None = None
    samples: Callable[[], Mapping[int, SampleSlot]] = dict
    guard: float | None = None
    conditions: dict[Hashable, Conditions | None] = field(default_factory=dict, init=False)
    _programs: dict[int, PlannedProgram] = field(default_factory=dict, init=False)  # by the step where they begin
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _constants_read: dict[tuple[Program, int], frozenset[int]] = field(default_factory=dict, init=False)  # by step
    _reported: list[bool] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._programs[0] = PlannedProgram.of(self.program, self.plan)

    def __call__(self, *inputs: Any) -> list[Any]:
        """Run the step that is due. Inputs and outputs are those of the captured graph."""
        parameter = inputs[self.model_key]
        statistics = statistics_of(parameter)
        self._report(statistics)
        generation = current_generation(parameter)
        if isinstance(generation, Together):
            return generation.run(self, inputs)
        timestep = self.read_timestep(inputs)
        counted = None
        if generation is None:
            counted = self._counted(parameter, timestep, statistics)
            generation = counted.generation
        try:
            if isinstance(generation, Outside):
                raise Miss("outside", generation.reason)
            key = (id(parameter), self.plan.digest)
            branches: Branches[BranchState] = generation.branches(key, self.plan.calls_per_step)
            with generation.lock:
                call, branch = find_branch(self, generation.clock, branches, timestep, statistics.budget, inputs)
        except Miss as miss:
            return self._run_plain(miss, generation, statistics, inputs)
        if counted is not None:
            counted.calls += 1
        try:
            outputs = self._follow(generation, branches, branch, call.step, inputs, statistics)
        except BaseException:
            branches.drop(call.branch)
            if counted is not None:
                counted_generations(parameter).forget(self.plan.digest)
            raise
        if call.step == self.plan.steps - 1:
            branches.drop(call.branch)
        return outputs

    def _follow(
        self,
        generation: Generation,
        branches: Branches[BranchState],
        branch: BranchState,
        step: int,
        inputs: Sequence[Any],
        statistics: ModelStatistics,
    ) -> list[Any]:
        """Run a step of the plan, or all of the denoiser if the guard has tripped; compare forecasts at anchors."""
        planned, here = self.starting_at(branch.start), step - branch.start
        if self.guard is not None and here in planned.keeps:
            exceeded = branches.newest.exceeding(self.guard, step)
            if exceeded is not None:
                statistics.guarded(generation, step, exceeded, self.guard)
                return self._run_guarded(branch, here, inputs, generation.clock.schedule)
        point = planned.watchpoints.get(here) if generation.counted else None
        forecasts = point.forecasts(branch.slots.registers) if point is not None else ()
        outputs = self._run(branch, here, inputs, generation.clock.schedule)
        if point is not None:
            reading = Reading.send(step, point.expected, point.error(forecasts, branch.slots.registers))
            branches.newest.add(reading)
            statistics.drifted(generation, reading)
        statistics.count(generation, planned.regions[here])
        return outputs

    def _run(self, branch: BranchState, here: int, inputs: Sequence[Any], schedule: Hashable) -> list[Any]:
        """Run a step, counted from where the branch began."""
        slots = branch.slots
        inputs = self._with_kept(branch, slots.program, here, here, inputs, schedule)
        if slots.graphs is not None:
            return slots.graphs.run(slots.program, here, inputs)
        return run_owned(slots.program, here, slots.registers, inputs)

    def _run_guarded(self, branch: BranchState, here: int, inputs: Sequence[Any], schedule: Hashable) -> list[Any]:
        """Compute everything at a step; what is kept is what the plan keeps there, as later steps count on it."""
        if self.starting_at(branch.start).keeps[here]:
            self._run(branch, here, inputs, schedule)
        inputs = self._with_kept(branch, self.program, 0, here, inputs, schedule)
        return run_owned(self.program, 0, new_registers(self.program, only_first=True), inputs)

    def _with_kept(
        self, branch: BranchState, program: Program, step: int, here: int, inputs: Sequence[Any], schedule: Hashable
    ) -> Sequence[Any]:
        """Return the inputs of a step of a program, with what is computed ahead for the present one, ``here``."""
        if self.constants is not None:
            inputs = (*inputs, *branch.constants.values(self.constants, inputs, self._constants(program, step)))
        if self.conditioning is not None:
            inputs = (*inputs, *branch.conditioning.values(self.conditioning, here, inputs, schedule))
        return inputs

    def _run_plain(
        self, miss: Miss, generation: Generation | Outside, statistics: ModelStatistics, inputs: Sequence[Any]
    ) -> list[Any]:
        counts_as = miss if self.missed is None else self.missed(miss)
        if self.on_miss == "error":
            raise TrajectoryError(str(miss)) from None
        statistics.miss(generation, counts_as)
        return self.compute_all(inputs)

    def compute_all(self, inputs: Sequence[Any]) -> list[Any]:
        """Compute everything: the first step of a plan does, and what it keeps is thrown away."""
        return run_owned(self.program, 0, new_registers(self.program, only_first=True), self.prepared(inputs, 0))

    def prepared(self, inputs: Sequence[Any], step: int) -> Sequence[Any]:
        """Return the inputs of the step program for one call that keeps none of what is computed ahead."""
        if self.constants is not None:
            inputs = (*inputs, *compute(self.constants, inputs, self._constants(self.program, step)))
        if self.conditioning is not None:
            inputs = (*inputs, *run_once(self.conditioning.one_step, inputs))
        return inputs

    def _constants(self, program: Program, step: int) -> frozenset[int]:
        """Return the numbers of the constants that a step reads."""
        key = (program, program.distinct_steps[step])
        if key not in self._constants_read:
            assert self.constants is not None
            read = program.registers_read[key[1]]
            if self.conditioning is not None:
                read = read.union(self.conditioning.conditions)
            self._constants_read[key] = self.constants.among(read)
        return self._constants_read[key]

    def starting_at(self, step: int) -> PlannedProgram:
        """Return the program of a branch of guidance that begins at a later step, compiled when first asked for."""
        if step not in self._programs:
            with self._lock:  # held while it compiles, which other generations need not wait for
                if step not in self._programs:
                    assert self.build is not None
                    plan = resume_at(self.plan, step)
                    with torch.inference_mode(False):
                        self._programs[step] = PlannedProgram.of(self.build(plan), plan)
        return self._programs[step]

    def _counted(self, parameter: torch.Tensor, timestep: float | None, statistics: ModelStatistics) -> Counted:
        plan = self.plan
        if timestep is None:
            statistics.say(
                "counted",
                f"calls are counted, {plan.steps * plan.calls_per_step} to a generation, as neither a trajectory nor "
                "timesteps tell where one begins; one with another number of calls shifts all that follow. Put each "
                "generation inside `with soda_compile.trajectory(model):`",
            )
        starts = timestep is not None and is_at(self.timesteps, 0, timestep)
        calls = plan.steps * plan.calls_per_step
        return counted_generations(parameter).next(plan.digest, calls, plan.calls_per_step, starts)

    def _report(self, statistics: ModelStatistics) -> None:
        """Count what was compiled, once the model is known."""
        if not self._reported and self.compile_seconds is not None:
            self._reported.append(True)
            statistics.compiled(self.compile_seconds)

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Return the plan's timesteps; none if it knows none."""
        return self.plan.timesteps or ()

    def read_timestep(self, inputs: Sequence[Any], part: float = 0) -> float | None:
        """Return the timestep among the inputs, where the host can read it without waiting for a device.

        Args:
            inputs: Inputs of the captured graph.
            part: Where in the batch to read, from 0 to 1: generations that share a call may each have their own.
        """
        if self.timestep is None or not self.timesteps:
            return None
        value = inputs[self.timestep]
        if isinstance(value, torch.Tensor):
            if value.device.type != "cpu":
                return None
            return float(value if value.numel() == 1 else value.view(-1)[int(part * value.numel())])
        return float(value)
