"""A denoiser compiled by a plan, before the sizes of its calls are known."""

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from soda_compile.backend.options import Options, require_watched
from soda_compile.backend.variations import remember
from soda_compile.compiler.bind import require_fit
from soda_compile.compiler.conditioning import separate_conditioning
from soda_compile.compiler.conditioning_stage import ConditioningStage, build_stage
from soda_compile.compiler.constant_stage import ConstantStage, take_constants
from soda_compile.compiler.kept_values import with_slots
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.program import Program, build_program
from soda_compile.compiler.slot_samples import slot_samples
from soda_compile.errors import CaptureError, OptionError
from soda_compile.ir.structure import Structure
from soda_compile.plans.plan import Plan
from soda_compile.runtime.cuda_graphs import Recording
from soda_compile.runtime.denoiser import PlannedDenoiser
from soda_compile.runtime.memory import keep_freed_memory
from soda_compile.runtime.slots import SlotPool
from soda_compile.torch_internals.tracing import log_artifact

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PreparedDenoiser:
    """What a denoiser is compiled to; its code is shared by the calls of all sizes.

    Attributes:
        structure: The denoiser, whole, with a region for each of its slots.
        plan: The plan.
        options: Options of the backend.
        program: The compiled plan.
        build: Compiles another plan for the same graph.
        constants: Computes further inputs of the program, once in a generation; None if there are none.
        conditioning: Computes those after them; None if there are none.
        weights: For each input of the program whether it is a parameter or buffer.
        compile_seconds: Time that compiling took; None where a denoiser made of it has told that already.
    """

    structure: Structure
    plan: Plan
    options: Options
    program: Program
    build: Callable[[Plan], Program]
    constants: ConstantStage | None
    conditioning: ConditioningStage | None
    weights: tuple[bool, ...]
    compile_seconds: float | None

    def covers(self, inputs: Sequence[Any]) -> bool:
        """Return whether calls of other sizes, those of these inputs, can share what is compiled."""
        sizes = self.structure.sizes
        return sizes is not None and sizes.hold(sizes.of(inputs))

    def for_inputs(self, inputs: Sequence[Any]) -> PlannedDenoiser:
        """Return the denoiser for calls of the sizes of these inputs."""
        sizes = self.structure.sizes
        return self.at({} if sizes is None else sizes.of(inputs))

    def at(self, sizes: Mapping[str, int]) -> PlannedDenoiser:
        """Return the denoiser for calls of these sizes, by name; none where all sizes are fixed."""
        parameters, paths = self.structure.parameters, self.structure.paths
        program = self.program.at(sizes)
        return PlannedDenoiser(
            program=program,
            plan=self.plan,
            model_key=parameters.index(True),
            timestep=paths.index(self.plan.timestep_input) if self.plan.timestep_input in paths else None,
            build=lambda plan: self.build(plan).at(sizes),
            on_miss=self.options.on_miss,
            missed=self.options.missed,
            pool=SlotPool(
                self.options.slot_memory_bytes, Recording(self.weights) if self.options.cuda_graphs else None
            ),
            constants=self.constants and self.constants.at(sizes),
            conditioning=self.conditioning and self.conditioning.at(sizes),
            compile_seconds=self.compile_seconds,
            samples=functools.cache(lambda: slot_samples(self.structure.at(sizes), program)),
            guard=self.options.guard,
        )


def prepare(structure: Structure, plan: Plan, options: Options, lowering: Lowering) -> PreparedDenoiser:
    """Compile a denoiser by a plan.

    Raises:
        PlanError: If the plan is for another model.
        CaptureError: If the denoiser has no parameters.
        OptionError: If the plan is to be guarded and cannot be, or processes share the model.
    """
    require_fit(plan, structure)
    require_watched(plan, options.guard)
    if options.guard is not None and structure.collectives:
        raise OptionError(
            f"guard={options.guard:g} is decided in each process, and those that share this model would wait for each "
            "other in different steps; leave guard out"
        )
    log_artifact("soda_plan", lambda: str(plan))
    if True not in structure.parameters:
        raise CaptureError("the denoiser has no parameters, so its calls cannot be told from another model's")
    started = time.perf_counter()
    stage, given = None, len(structure.inputs)
    steps, constants = take_constants(structure, plan.timestep_input, lowering)
    asked = options.conditioning == "trajectory"
    if asked or (options.conditioning == "auto" and plan.timestep_input is not None):
        steps, stage = _conditioning_stage(steps, plan, lowering, asked=asked)
    keep_freed_memory(structure.regions[0].cuts[0].device)

    def build(plan: Plan) -> Program:
        program = build_program(steps, plan, lowering, options.granularity)
        return replace(program, prepared=len(steps.inputs) - given)

    program = build(plan)
    remember(plan, structure)
    slotted, _ = with_slots(structure, plan)
    return PreparedDenoiser(
        slotted, plan, options, program, build, constants, stage, steps.parameters, time.perf_counter() - started
    )


def _conditioning_stage(
    structure: Structure, plan: Plan, lowering: Lowering, *, asked: bool
) -> tuple[Structure, ConditioningStage | None]:
    """Return what is left of the structure without its conditioning, and the stage that computes that.

    Args:
        structure: The denoiser.
        plan: The plan.
        lowering: Store of compiled subgraphs.
        asked: Whether the user asked for it, and is told where it cannot be had.

    Raises:
        CaptureError: If it was asked for and an operator cannot be computed for all steps at once.
    """
    split = separate_conditioning(structure)
    if split is None:
        if asked:
            log.warning(
                "option conditioning='trajectory' changes nothing: no matrix product depends on the timestep and "
                "pooled inputs alone, so there is nothing to compute ahead"
            )
        return structure, None
    conditioning, steps = split
    stage = build_stage(conditioning, plan.steps, structure.weight_bytes, lowering, asked=asked)
    return (structure, None) if stage is None else (steps, stage)
