"""The compiled denoiser: it finds its step and runs that step's calls."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from soda_compile.compiler.conditioning_stage import ConditioningStage
from soda_compile.compiler.program import Program
from soda_compile.errors import TrajectoryError
from soda_compile.plans.plan import Plan
from soda_compile.plans.resume import resume_at
from soda_compile.runtime.clock import Clock, clock_for
from soda_compile.runtime.cuda_graphs import Recording
from soda_compile.runtime.execution import run_step
from soda_compile.runtime.state import BranchState, state_of


@dataclass(frozen=True, eq=False)
class PlannedDenoiser:
    """Runs a program; called by Dynamo with the graph's inputs in order.

    Attributes:
        program: The compiled plan.
        plan: The plan.
        model_key: Index of an input that is a parameter: it tells which model is called.
        timestep: Index of the input that carries the timestep, if the plan knows it.
        clock: The clock that an integration ties to its scheduler.
        build: Compiles another plan for the same graph; only what its variants do not share is compiled anew.
        recording: Records steps as CUDA graphs; None runs them as they are.
        conditioning: Computes further inputs of the program; None if it takes those of the captured graph alone.
    """

    program: Program
    plan: Plan
    model_key: int
    timestep: int | None
    clock: Clock | None
    build: Callable[[Plan], Program]
    recording: Recording | None = None
    conditioning: ConditioningStage | None = None
    _resumed: dict[int, Program] = field(default_factory=dict, init=False)

    def __call__(self, *inputs: Any) -> list[Any]:
        """Run the step that is due. Inputs and outputs are those of the captured graph."""
        parameter = inputs[self.model_key]
        state = state_of(parameter, self.plan.digest, self.plan.calls_per_step, self.plan.steps)
        clock = self.clock or clock_for(parameter)
        # A tied clock knows the step, and its owner has checked the timesteps.
        timestep = self._read_timestep(inputs) if self.clock is None else None
        nearest = None if timestep is None else self._nearest(timestep)
        starts = nearest is not None and nearest == self._timesteps[0]
        try:
            step, branch = state.locate(clock, self.program, starts, self._resume)
            if timestep is not None and nearest != self._timesteps[step]:
                raise TrajectoryError(self._mismatch(timestep, step))
            return self._run(branch, step, inputs, clock.schedule if clock else None)
        except BaseException:
            state.reset()
            raise

    def _run(self, branch: BranchState, step: int, inputs: Sequence[Any], schedule: Hashable) -> list[Any]:
        program = branch.program or self.program
        here = step - branch.start
        if self.conditioning is not None:
            inputs = (*inputs, *branch.conditioning_cache.values(self.conditioning, here, inputs, schedule))
        if self.recording is not None and branch.graphs is None:
            branch.graphs = self.recording.start(program, branch.registers, inputs)
        if branch.graphs is not None:
            return branch.graphs.run(program, here, inputs)
        return run_step(program, here, branch.registers, inputs)

    def _resume(self, start: int) -> Program:
        """Return the program for a branch of guidance that begins at a later step."""
        if start not in self._resumed:
            with torch.inference_mode(False):
                self._resumed[start] = self.build(resume_at(self.plan, start))
        return self._resumed[start]

    @property
    def _timesteps(self) -> tuple[float, ...]:
        return self.plan.timesteps or ()

    def _read_timestep(self, inputs: Sequence[Any]) -> float | None:
        """Return the timestep among the inputs, where the host can read it without waiting for a device."""
        if self.timestep is None or not self._timesteps:
            return None
        value = inputs[self.timestep]
        if isinstance(value, torch.Tensor):
            return float(value.flatten()[0]) if value.device.type == "cpu" else None
        return float(value)

    def _nearest(self, timestep: float) -> float:
        """Return the plan's nearest timestep; narrow dtypes round the denoiser's."""
        return min(self._timesteps, key=lambda planned: abs(planned - timestep))

    def _mismatch(self, timestep: float, step: int) -> str:
        return (
            f"the denoiser is called with {self.plan.timestep_input}={timestep:g}, but step {step} is due, which has "
            f"{self._timesteps[step]:g}. The plan was made for {self.plan.steps} steps, timesteps "
            f"{self._timesteps[0]:g} to {self._timesteps[-1]:g}, and {self.plan.calls_per_step} denoiser call(s) a "
            "step. Use the same noise scheduler and step count, and put each generation inside "
            "`with soda_compile.trajectory(model):`"
        )
