"""Runs any step of any plan on a recorded denoiser, with the kept values and the weights that it is told."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from soda_compile.backend.options import check_options
from soda_compile.capture.forward import compile_forward
from soda_compile.capture.scalars import keep_integers, with_tensors
from soda_compile.compiler.analyse import analyse_graph
from soda_compile.compiler.bind import require_fit
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.program import Program, build_program
from soda_compile.ir.structure import Structure
from soda_compile.measure.recording import RecordedStep, Recording, first_tensor
from soda_compile.plans.plan import Plan
from soda_compile.runtime.execution import run_owned
from soda_compile.runtime.slots import new_registers
from soda_compile.torch_internals.wrapped_tensors import flatten_inputs, has_wrapped

Weights = Mapping[int, Sequence[float]]
"""Weights of kept values at one step, by order of the operator."""


@dataclass(eq=False)
class Kept:
    """What one call in each step keeps under one plan; a copy shares the values until it is stepped.

    Attributes:
        program: The compiled plan; None before the first step.
        registers: Its registers.
    """

    program: Program | None = None
    registers: list[Any] = field(default_factory=list)

    def copy(self) -> "Kept":
        """Return what goes on from here by itself, through steps that write to no kept value in place."""
        return Kept(self.program, list(self.registers))

    def apart(self) -> "Kept":
        """Return what goes on from here through any steps, with kept values of its own."""
        copied = self.copy()
        for number in self.program.slots if self.program is not None else ():
            copied.registers[number] = self.registers[number].clone()
        return copied


@dataclass(eq=False)
class Player:
    """A recorded denoiser, compiled for any plan; used inside ``playing``.

    Attributes:
        module: The denoiser.
        computed_share: FLOPs of all calls so far, in calls of the original.
        calls: Number of calls so far.
    """

    module: torch.nn.Module
    computed_share: float = 0.0
    calls: int = 0
    _programs: dict[tuple[Structure, str], Program] = field(default_factory=dict)
    _job: tuple[Plan, int, Kept, Weights] | None = None
    _lowering: Lowering = field(default_factory=Lowering)

    def backend(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Capture a graph from Dynamo; what it is compiled for is told with each call."""
        if has_wrapped(inputs):
            run = self._compiled(module, inputs)
            return lambda *values: run(*flatten_inputs(values))
        given, integers = keep_integers(module, inputs)
        run = self._compiled(module, given)
        return with_tensors(run, integers) if integers else run

    def _compiled(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        structure = analyse_graph(module, inputs)
        if structure is None:
            return module.forward
        return lambda *values: self._run(structure, values)

    def _run(self, structure: Structure, inputs: Sequence[Any]) -> list[Any]:
        assert self._job is not None, "the denoiser is called through the player alone"
        plan, step, kept, weights = self._job
        if kept.program is None:
            kept.program = self._program(structure, plan)
            kept.registers = new_registers(kept.program)
        program = kept.program
        for order, values in weights.items():
            register = program.weights[step, order]
            like = program.tensors[register]
            kept.registers[register] = torch.tensor(values, dtype=like.dtype, device=like.device)
        self.calls += 1
        self.computed_share += program.flops[step] / structure.flops
        return run_owned(program, step, kept.registers, inputs)

    def _program(self, structure: Structure, plan: Plan) -> Program:
        key = (structure, plan.digest)
        if key not in self._programs:
            require_fit(plan, structure)
            self._programs[key] = build_program(structure, plan, self._lowering)
        return self._programs[key]

    def call(self, plan: Plan, step: int, kept: Kept, call: Any, weights: Weights | None = None) -> torch.Tensor:
        """Call the denoiser at a step of a plan, and return the first tensor of its result.

        Args:
            plan: The plan.
            step: Number of the step in the plan.
            kept: The kept values; the step writes its own there.
            call: Arguments by position and by name.
            weights: Instead of the plan's fitted weights at this step.
        """
        self._job = (plan, step, kept, weights or {})
        try:
            with torch.no_grad():
                return first_tensor(self.module(*call[0], **call[1]))
        finally:
            self._job = None

    def outputs(
        self,
        plan: Plan,
        number: int,
        kept: Sequence[Kept],
        recorded: RecordedStep,
        sample: torch.Tensor,
        weights: Weights | None = None,
    ) -> torch.Tensor:
        """Return what the scheduler takes at a recorded step, from another sample under a plan.

        Args:
            plan: The plan.
            number: Number of the step in the plan.
            kept: The kept values of each call.
            recorded: The step.
            sample: The sample before it.
            weights: Instead of the plan's fitted weights at this step.
        """
        calls = zip(recorded.calls, recorded.inputs, kept, strict=True)
        found = [
            self.call(plan, number, own, place.replaced(call.arguments, call.options, sample), weights)
            for call, place, own in calls
        ]
        return recorded.output_map(found, recorded.scheduler.model_output)


_present: ContextVar[Player | None] = ContextVar("soda_compile_player", default=None)


@contextmanager
def playing(recording: Recording) -> Iterator[Player]:
    """Compile a recorded denoiser for a while; inside of another ``playing`` of it, take what is compiled there.

    Raises:
        OptionError: If it is compiled or accelerated already.
    """
    outer = _present.get()
    if outer is not None and outer.module is recording.module:
        yield outer
        return
    options = check_options()
    player = Player(recording.module, _lowering=Lowering(options.inductor, target=options.lowering))
    module, framework = recording.module, recording.framework
    with compile_forward(module, player.backend, framework.around_calls(module), framework.holders):
        token = _present.set(player)
        try:
            yield player
        finally:
            _present.reset(token)
