"""The step program: for every step of a plan, a flat list of compiled calls with their arguments resolved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx

from soda_compile.compiler.bind import require_token_axes
from soda_compile.compiler.index_sharing import share_indices
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.registers import Registers, StepView
from soda_compile.compiler.schedule import schedule_region
from soda_compile.compiler.steps import Granularity, StepBuilder, StepPieces
from soda_compile.compiler.variants import CallRole, Piece
from soda_compile.ir.aten_operators import graph_flops
from soda_compile.ir.graphs import results_of
from soda_compile.ir.structure import Cut, Note, Structure
from soda_compile.plans.plan import Plan
from soda_compile.torch_internals.inductor import Compiled


@dataclass(frozen=True, eq=False)
class Call:
    """One compiled call: which registers go in, which come out, which are free after it."""

    function: Compiled
    arguments: tuple[int, ...]
    results: tuple[int, ...]
    release: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled plan for one signature of inputs.

    All values live in one list of registers: inputs first, then constants, coefficients, slots, and what the calls
    give. Slots, constants and coefficients keep their register for the whole trajectory.

    Attributes:
        steps: For each step its calls.
        outputs: Registers to return, in order (None for a None).
        registers: Number of registers.
        tensors: Constants, coefficients and what else a step needs to know, by register.
        slots: Layout of each slot, by register.
        flops: For each step the FLOPs of what runs.
        notes: What the analysis and the passes left alone, and why.
    """

    steps: tuple[tuple[Call, ...], ...]
    outputs: tuple[int | None, ...]
    registers: int
    tensors: dict[int, torch.Tensor]
    slots: dict[int, Cut]
    flops: tuple[int, ...]
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


def build_program(structure: Structure, plan: Plan, lowering: Lowering, granularity: Granularity = "block") -> Program:
    """Binds a plan to a structure and compiles all that it needs.

    Args:
        structure: The analysed denoiser; its regions must be those of the plan, in the same order.
        plan: What every region does at every step.
        lowering: Where compiled pieces are kept.
        granularity: What is compiled as one graph: ``block`` or ``step``.
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
        pieces = builder.pieces(tuple(tuple(access.mode for access in call) for call in accesses))
        steps.append(StepPieces(pieces, accesses))
    program = assemble(structure, steps, Registers(structure, bounds, sharing), lowering)
    return dataclasses.replace(program, notes=(*structure.notes, *builder.notes))


def _region_bounds(structure: Structure) -> list[tuple[int, int]]:
    """For each call the range of its regions in the plan."""
    bounds, start = [], 0
    for call in structure.calls:
        bounds.append((start, start + len(call.block.regions)))
        start += len(call.block.regions)
    return bounds


def assemble(structure: Structure, steps: Sequence[StepPieces], registers: Registers, lowering: Lowering) -> Program:
    """Compile the pieces of all steps and resolve their arguments."""
    lowering.compile(piece for step in steps for piece in step.pieces)
    resolved = tuple(_calls(structure, number, step, registers, lowering) for number, step in enumerate(steps))
    outputs = tuple(registers.value(name) if name else None for name in structure.outputs)
    flops = tuple(sum(graph_flops(piece.module.graph) for piece in step.pieces) for step in steps)
    return Program(resolved, outputs, registers.count, registers.tensors, registers.slots, flops)


def _calls(
    structure: Structure, number: int, step: StepPieces, registers: Registers, lowering: Lowering
) -> tuple[Call, ...]:
    last_use = {
        source: index for index, piece in enumerate(step.pieces) for source in piece.inputs if isinstance(source, str)
    }
    fixed = {*structure.inputs, *structure.constants, *structure.outputs}
    view = StepView(number, step.accesses)
    calls = []
    for index, piece in enumerate(step.pieces):
        release = tuple(registers.value(name) for name, last in last_use.items() if last == index and name not in fixed)
        calls.append(_call(piece, registers, view, lowering, release))
    return tuple(calls)


def _call(
    piece: Piece, registers: Registers, view: StepView, lowering: Lowering, release: tuple[int, ...] = ()
) -> Call:
    graph = piece.module.graph
    arguments = _registers(piece.inputs, graph.find_nodes(op="placeholder"), registers, view)
    results = _registers(piece.outputs, results_of(graph), registers, view)
    return Call(lowering.compiled[piece.key], arguments, results, release)


def _registers(
    ends: Sequence[str | CallRole], nodes: Sequence[fx.Node], registers: Registers, view: StepView
) -> tuple[int, ...]:
    return tuple(
        registers.value(end) if isinstance(end, str) else registers.role(end, node.meta["val"], view)
        for end, node in zip(ends, nodes, strict=True)
    )
