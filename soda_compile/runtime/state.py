"""Run-time state of one model under one plan: where each branch of guidance stands, and its slots."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch

from soda_compile.compiler.program import Program
from soda_compile.errors import TrajectoryError
from soda_compile.runtime.call_counter import Branch, CallCounter, CountedCall
from soda_compile.runtime.clock import Clock
from soda_compile.runtime.conditioning_cache import ConditioningCache
from soda_compile.runtime.cuda_graphs import StepGraphs
from soda_compile.torch_internals.tracing import WeakIdKeyDictionary

log = logging.getLogger(__name__)


@dataclass(eq=False)
class BranchState:
    """The registers of one branch of guidance under one program.

    Attributes:
        program: What runs from ``start`` on; None for the plan's own program, which its branches must not keep alive.
        start: The plan's step at which the branch began.
        registers: Its registers.
        trajectory: The trajectory that was run last.
        step: The plan's step that was run last.
        graphs: Its recorded steps, where steps are recorded.
        conditioning_cache: What conditions its steps, where conditioning is computed ahead.
    """

    program: Program | None
    start: int
    registers: list[Any]
    trajectory: int = -1
    step: int = -1
    graphs: StepGraphs | None = None
    conditioning_cache: ConditioningCache = field(default_factory=ConditioningCache)


@dataclass(eq=False)
class State:
    """Memory of one model under one plan between calls.

    Attributes:
        counter: Counts the calls, and knows the plan's number of steps.
        branches: For each program its branches. Programs are held weakly: a recompiled one takes its slots along.
    """

    counter: CallCounter
    branches: WeakKeyDictionary[Program, dict[Branch, BranchState]] = field(default_factory=WeakKeyDictionary)
    _warned: bool = False

    def locate(
        self, clock: Clock | None, program: Program, starts: bool, resume: Callable[[int], Program]
    ) -> tuple[int, BranchState]:
        """Return the step of the call that comes now, and the state of its branch of guidance.

        Args:
            clock: The clock that counts, or None to count calls and wrap.
            program: What will run.
            starts: See ``CallCounter.count``.
            resume: Gives the program for a branch that begins at a later step.

        Raises:
            TrajectoryError: If the call lies beyond the plan's steps, or a branch has missed a step.
        """
        call = self.counter.count(clock, starts)
        if call.step >= self.counter.steps:
            raise TrajectoryError(
                f"the denoiser is called for step {call.step + 1} of a trajectory, but the plan has "
                f"{self.counter.steps} steps; start a new trajectory for the next generation, or make a plan for this "
                "number of steps"
            )
        branch = self.branches.get(program, {}).get(call.branch)
        start = self._start(branch, call) if clock is not None and clock.restarts else 0
        if branch is None:
            self._free_unused(call.trajectory)
        if branch is None or branch.start != start:
            resumed = resume(start) if start else None
            branch = BranchState(resumed, start, _new_registers(resumed or program))
            self.branches.setdefault(program, {})[call.branch] = branch
        if call.step > start and (branch.trajectory, branch.step) != (call.trajectory, call.step - 1):
            where = f"last ran step {branch.step}" if branch.trajectory == call.trajectory else "has not run"
            raise TrajectoryError(
                f"branch {call.branch} of guidance is called for step {call.step}, but in this trajectory it {where} "
                "with inputs of this shape and dtype; a branch must be called at every step, from the first, with the "
                "same shapes. Check calls_per_step and where the trajectory starts"
            )
        branch.trajectory, branch.step = call.trajectory, call.step
        return call.step, branch

    def _start(self, branch: BranchState | None, call: CountedCall) -> int:
        """Return the step at which a branch began that may begin at any step."""
        if branch is None or branch.trajectory != call.trajectory:
            return call.step
        if branch.step == call.step - 1:
            return branch.start
        if not self._warned:
            log.warning(
                "a denoiser call left out steps %d to %d; whenever it comes back it computes everything once",
                branch.step + 1,
                call.step - 1,
            )
        self._warned = True
        return call.step

    def _free_unused(self, trajectory: int) -> None:
        """Drop the slots of other shapes, unless this trajectory has used them."""
        for program, branches in list(self.branches.items()):
            if all(branch.trajectory != trajectory for branch in branches.values()):
                del self.branches[program]

    def reset(self) -> None:
        """Forget where the branches stand: the next call without a clock starts a trajectory."""
        self.counter.reset()
        for branches in self.branches.values():
            for branch in branches.values():
                branch.trajectory = branch.step = -1

    @property
    def slot_memory_bytes(self) -> int:
        """Memory of all slots of all branches."""
        return sum(
            (branch.program or program).slot_memory_bytes
            for program, branches in self.branches.items()
            for branch in branches.values()
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
    """Return the state of the model that owns ``parameter`` under the plan with this digest."""
    by_plan: dict[str, State] | None = _states.get(parameter)  # type: ignore[no-untyped-call]
    if by_plan is None:
        by_plan = cast(dict[str, State], _states.setdefault(parameter, {}))  # type: ignore[no-untyped-call]
    if digest not in by_plan:
        by_plan.setdefault(digest, State(CallCounter(calls_per_step, steps)))
    return by_plan[digest]


def forget(parameters: Iterable[torch.Tensor]) -> None:
    """Drop the states of the model that owns these parameters, with their slots."""
    for parameter in parameters:
        if _states.get(parameter) is not None:  # type: ignore[no-untyped-call]
            del _states[parameter]
