"""The step program: for every step of a plan, a flat list of compiled calls with their arguments resolved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx

from soda_compile.compiler.all_steps import AllSteps, all_steps, is_conditioning, stacked
from soda_compile.compiler.bind import require_token_axes
from soda_compile.compiler.index_sharing import share_indices
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.registers import Registers, StepView
from soda_compile.compiler.schedule import schedule_region
from soda_compile.compiler.steps import Granularity, StepBuilder, StepSubgraphs
from soda_compile.compiler.variants import CallRole, Subgraph
from soda_compile.ir.aten_operators import graph_flops
from soda_compile.ir.graphs import results_of
from soda_compile.ir.structure import Cut, Note, Structure
from soda_compile.plans.plan import Plan
from soda_compile.torch_internals.inductor_patches import Compiled


@dataclass(frozen=True, eq=False)
class Call:
    """One compiled call: which registers go in, which come out, which are free after it."""

    function: Compiled
    arguments: tuple[int, ...]
    results: tuple[int, ...]
    release: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Ahead:
    """How the conditioning of all steps is computed at once.

    Attributes:
        reads: For each input that it follows from its register, and the register of what it is at all steps, stacked.
        calls: The calls.
        values: For each value that steps read its register, and the register of those of all steps, stacked.
        skip: For each step how many of its first calls compute the same for that step alone.
        memory_bytes: Of the values of all steps.
    """

    reads: tuple[tuple[int, int], ...]
    calls: tuple[Call, ...]
    values: tuple[tuple[int, int], ...]
    skip: tuple[int, ...]
    memory_bytes: int


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled plan for one signature of inputs.

    All values live in one list of registers: inputs first, then constants, coefficients, slots, and what the calls
    give. Slots, constants and coefficients keep their register for the whole trajectory.

    Attributes:
        steps: For each step its calls.
        inputs: Number of inputs, registers 0 to inputs - 1.
        outputs: Registers to return, in order (None for a None).
        registers: Number of registers.
        tensors: Constants, coefficients and what else a step needs to know, by register.
        slots: Layout of each slot, by register.
        flops: For each step the FLOPs of what runs.
        ahead: How conditioning is computed ahead, if it is apart.
        notes: What the analysis and the passes left alone, and why.
    """

    steps: tuple[tuple[Call, ...], ...]
    inputs: int
    outputs: tuple[int | None, ...]
    registers: int
    tensors: dict[int, torch.Tensor]
    slots: dict[int, Cut]
    flops: tuple[int, ...]
    ahead: Ahead | None = None
    notes: tuple[Note, ...] = ()

    @cached_property
    def distinct_steps(self) -> tuple[int, ...]:
        """For each step the number of the first that makes the same calls on the same registers."""
        kinds: dict[object, int] = {}
        calls = [
            tuple((id(call.function), call.arguments, call.results, call.release) for call in step)
            for step in self.steps
        ]
        return tuple(kinds.setdefault(made, number) for number, made in enumerate(calls))

    @property
    def slot_memory_bytes(self) -> int:
        """Memory of the slots of one stream."""
        return sum(cut.memory_bytes for cut in self.slots.values())


def build_program(
    structure: Structure,
    plan: Plan,
    lowering: Lowering,
    granularity: Granularity = "block",
    *,
    ahead: bool = False,
) -> Program:
    """Binds a plan to a structure and compiles all that it needs.

    Args:
        structure: The analysed denoiser; its regions must be those of the plan, in the same order.
        plan: What every region does at every step.
        lowering: Where compiled subgraphs are kept.
        granularity: What is compiled as one graph: ``block`` or ``step``.
        ahead: Whether conditioning that is apart is compiled for all steps at once, too.
    """
    require_token_axes(structure, plan)
    sharing = share_indices(structure, plan)
    rows = [
        schedule_region(actions, plan.pruning, uses) for actions, uses in zip(plan.actions, sharing.uses, strict=True)
    ]
    bounds = _region_bounds(structure)
    builder = StepBuilder(structure, granularity)
    steps = []
    for step in range(plan.steps):
        accesses = tuple(tuple(row[step] for row in rows[start:stop]) for start, stop in bounds)
        subgraphs = builder.subgraphs(tuple(tuple(access.mode for access in call) for call in accesses))
        steps.append(StepSubgraphs(subgraphs, accesses))
    together = all_steps(structure, builder, steps) if ahead else None
    lowering.compile(
        [*(subgraph for step in steps for subgraph in step.subgraphs), *(together.subgraphs if together else ())]
    )
    program = _assemble(structure, steps, together, Registers(structure, bounds, sharing), lowering)
    return dataclasses.replace(program, notes=(*structure.notes, *builder.notes))


def _region_bounds(structure: Structure) -> list[tuple[int, int]]:
    """For each call the range of its regions in the plan."""
    bounds, start = [], 0
    for call in structure.calls:
        bounds.append((start, start + len(call.block.regions)))
        start += len(call.block.regions)
    return bounds


def _assemble(
    structure: Structure,
    steps: Sequence[StepSubgraphs],
    together: AllSteps | None,
    registers: Registers,
    lowering: Lowering,
) -> Program:
    """Resolves all arguments."""
    resolved = tuple(_calls(structure, number, step, registers, lowering) for number, step in enumerate(steps))
    outputs = tuple(registers.value(name) if name else None for name in structure.outputs)
    flops = tuple(sum(graph_flops(subgraph.module.graph) for subgraph in step.subgraphs) for step in steps)
    inputs = len(structure.inputs)
    ahead = _ahead(structure, steps, together, registers, lowering) if together else None
    return Program(resolved, inputs, outputs, registers.count, registers.tensors, registers.slots, flops, ahead)


def _ahead(
    structure: Structure, steps: Sequence[StepSubgraphs], together: AllSteps, registers: Registers, lowering: Lowering
) -> Ahead:
    view = StepView(0, ())
    return Ahead(
        reads=tuple((registers.value(name), registers.value(stacked(name))) for name in structure.conditions),
        calls=tuple(_call(subgraph, registers, view, lowering) for subgraph in together.subgraphs),
        values=tuple((registers.value(name), registers.value(stacked(name))) for name in together.values),
        skip=tuple(sum(is_conditioning(structure, subgraph) for subgraph in step.subgraphs) for step in steps),
        memory_bytes=together.memory_bytes,
    )


def _calls(
    structure: Structure, number: int, step: StepSubgraphs, registers: Registers, lowering: Lowering
) -> tuple[Call, ...]:
    last_use = {
        source: index
        for index, subgraph in enumerate(step.subgraphs)
        for source in subgraph.inputs
        if isinstance(source, str)
    }
    fixed = {*structure.inputs, *structure.constants, *structure.outputs}
    view = StepView(number, step.accesses)
    calls = []
    for index, subgraph in enumerate(step.subgraphs):
        release = tuple(registers.value(name) for name, last in last_use.items() if last == index and name not in fixed)
        calls.append(_call(subgraph, registers, view, lowering, release))
    return tuple(calls)


def _call(
    subgraph: Subgraph, registers: Registers, view: StepView, lowering: Lowering, release: tuple[int, ...] = ()
) -> Call:
    graph = subgraph.module.graph
    arguments = _registers(subgraph.inputs, graph.find_nodes(op="placeholder"), registers, view)
    results = _registers(subgraph.outputs, results_of(graph), registers, view)
    return Call(lowering.compiled[subgraph.key], arguments, results, release)


def _registers(
    ends: Sequence[str | CallRole], nodes: Sequence[fx.Node], registers: Registers, view: StepView
) -> tuple[int, ...]:
    return tuple(
        registers.value(end) if isinstance(end, str) else registers.role(end, node.meta["val"], view)
        for end, node in zip(ends, nodes, strict=True)
    )
