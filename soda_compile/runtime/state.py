"""Run-time state of one model under one plan: where each stream stands, and its slots."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch

from soda_compile.compiler.program import Program
from soda_compile.errors import TrajectoryError
from soda_compile.runtime.clock import Clock
from soda_compile.runtime.conditioning_cache import ConditioningCache
from soda_compile.runtime.cuda_graphs import StepGraphs
from soda_compile.torch_internals.tracing import WeakIdKeyDictionary

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Frame:
    """The registers of one stream of one program.

    Attributes:
        tail: The program that runs from ``start`` on; None for the plan's own (which frames must not keep alive).
        start: The plan's step at which the stream began.
        registers: Its registers.
        trajectory: The trajectory that was run last.
        step: The plan's step that was run last.
        graphs: Its recorded steps, where steps are recorded.
        conditioning_cache: What conditions its steps, where conditioning is computed ahead.
    """

    tail: Program | None
    start: int
    registers: list[Any]
    trajectory: int = -1
    step: int = -1
    graphs: StepGraphs | None = None
    conditioning_cache: ConditioningCache = field(default_factory=ConditioningCache)


@dataclass(eq=False)
class State:
    """What one model under one plan remembers between calls.

    Attributes:
        calls_per_step: Denoiser calls in a step, for counting without a scheduler.
        steps: Steps of the plan.
        frames: Registers by the plan's program and stream. Programs are held weakly: a recompiled one takes its slots
            along. A stream is a number, or the name of a call and a number.
    """

    calls_per_step: int
    steps: int
    frames: WeakKeyDictionary[Program, dict[Hashable, Frame]] = field(default_factory=WeakKeyDictionary)
    _own: Clock = field(default_factory=lambda: Clock(automatic=True))
    _trajectory: int = 0
    _step: int = 0
    _calls: int = 0  # in the trajectory for an automatic clock, in the step otherwise
    _named: Counter[str | None] = field(default_factory=Counter)  # calls in the step by name
    _used: set[int] = field(default_factory=set)
    _told: bool = False

    def locate(
        self, clock: Clock | None, program: Program, starts: bool, tail: Callable[[int], Program]
    ) -> tuple[int, Frame]:
        """The step of the call that comes now, and the frame of its stream.

        Args:
            clock: The clock that counts, or None to count calls and wrap.
            program: What will run.
            starts: Whether the call shows by its timestep that it is a first step; without a clock this starts a
                new trajectory, so an interrupted generation does no harm.
            tail: Gives the program for a stream that begins at a later step.

        Raises:
            TrajectoryError: If the call lies beyond the plan's steps, or a stream has missed a step.
        """
        counting = clock or self._own
        if clock is None:
            over = self._calls >= self.steps * self.calls_per_step
            if over or not self._trajectory or (starts and self._calls >= self.calls_per_step):
                counting.begin()
        if counting.trajectory != self._trajectory:
            self._trajectory, self._step, self._calls = counting.trajectory, 0, 0
            self._named.clear()
            self._used.clear()
        stream: Hashable
        if counting.automatic:
            step, stream = divmod(self._calls, self.calls_per_step)
        else:
            if counting.step != self._step:
                self._step, self._calls = counting.step, 0
                self._named.clear()
            number = self._named[counting.stream]
            step, stream = counting.step, number if counting.stream is None else (counting.stream, number)
        if step >= self.steps:
            raise TrajectoryError(
                f"the denoiser is called for step {step + 1} of a trajectory, but the plan has {self.steps} steps; "
                "start a new trajectory for the next generation, or make a plan for this number of steps"
            )
        self._calls += 1
        self._named[counting.stream] += 1
        start = self._start(self.frames.get(program, {}).get(stream), step) if counting.restarts else 0
        return step, self._frame(program, stream, step, start, tail)

    def _start(self, frame: Frame | None, step: int) -> int:
        """The step at which a stream began that may begin at any step."""
        if frame is not None and frame.trajectory == self._trajectory:
            if frame.step == step - 1:
                return frame.start
            if not self._told:
                log.warning(
                    "a denoiser call left out steps %d to %d; whenever it comes back it computes everything once",
                    frame.step + 1,
                    step - 1,
                )
            self._told = True
        return step

    def _frame(
        self, program: Program, stream: Hashable, step: int, start: int, tail: Callable[[int], Program]
    ) -> Frame:
        streams = self.frames.get(program)
        if streams is None or stream not in streams:
            self._free_unused()
            streams = self.frames.setdefault(program, {})
        if stream not in streams or streams[stream].start != start:
            later = tail(start) if start else None
            streams[stream] = Frame(later, start, _new_registers(later or program))
        frame = streams[stream]
        if step > start and (frame.trajectory, frame.step) != (self._trajectory, step - 1):
            where = f"last ran step {frame.step}" if frame.trajectory == self._trajectory else "has not run"
            raise TrajectoryError(
                f"stream {stream} is called for step {step}, but in this trajectory it {where} with inputs of this "
                "shape and dtype; a stream must be called at every step, from the first, with the same shapes. "
                "Check calls_per_step and where the trajectory starts"
            )
        frame.trajectory, frame.step = self._trajectory, step
        self._used.add(id(program))
        return frame

    def _free_unused(self) -> None:
        """Drops the slots of other shapes, unless this trajectory has used them."""
        for program in list(self.frames):
            if id(program) not in self._used:
                del self.frames[program]

    def reset(self) -> None:
        """Forgets where the streams stand: the next call without a clock starts a trajectory."""
        self._trajectory = self._step = self._calls = 0
        for streams in self.frames.values():
            for frame in streams.values():
                frame.trajectory = frame.step = -1

    @property
    def slot_memory_bytes(self) -> int:
        """Memory of all slots of all streams."""
        return sum(
            (frame.tail or program).slot_memory_bytes
            for program, streams in self.frames.items()
            for frame in streams.values()
        )


def _new_registers(program: Program) -> list[Any]:
    registers: list[Any] = [None] * program.registers
    # A tensor born in inference mode could not be written outside of it later.
    with torch.inference_mode(False):
        for number, cut in program.slots.items():
            registers[number] = torch.empty_strided(cut.shape, cut.stride, dtype=cut.dtype, device=cut.device)
    for number, tensor in program.tensors.items():
        registers[number] = tensor
    return registers


# State must outlive a recompilation and end with its model: it hangs, weakly, on one of the model's parameters.
_states: WeakIdKeyDictionary = WeakIdKeyDictionary()


def state_of(parameter: torch.Tensor, digest: str, calls_per_step: int, steps: int) -> State:
    """The state of the model that owns ``parameter`` under the plan with this digest."""
    by_plan: dict[str, State] | None = _states.get(parameter)  # type: ignore[no-untyped-call]
    if by_plan is None:
        by_plan = cast(dict[str, State], _states.setdefault(parameter, {}))  # type: ignore[no-untyped-call]
    if digest not in by_plan:
        by_plan.setdefault(digest, State(calls_per_step, steps))
    return by_plan[digest]


def forget(parameters: Iterable[torch.Tensor]) -> None:
    """Drops the states of the model that owns these parameters, with their slots."""
    for parameter in parameters:
        if _states.get(parameter) is not None:  # type: ignore[no-untyped-call]
            del _states[parameter]
