"""The step program: for every step of a plan, a flat list of compiled calls with their arguments resolved."""

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any

import torch
from torch import fx

from soda_compile.compiler.bind import require_slot_dtype, require_token_axes
from soda_compile.compiler.index_sharing import share_indices
from soda_compile.compiler.kept_output import NAME as OUTPUT_NAME
from soda_compile.compiler.kept_values import with_slots
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.registers import Registers
from soda_compile.compiler.schedule import Access, schedule_output, schedule_region
from soda_compile.compiler.steps import Granularity, StepBuilder, StepSubgraphs
from soda_compile.compiler.symbolic_code import SymbolicCode
from soda_compile.compiler.variants import CallRole
from soda_compile.ir.aten_operators import counts_collective, graph_flops
from soda_compile.ir.graphs import results_of
from soda_compile.ir.roles import Size
from soda_compile.ir.structure import Cut, Note, Structure
from soda_compile.plans.plan import Plan
from soda_compile.plans.pruning import IndexUse
from soda_compile.torch_internals.inductor_patches import Compiled
from soda_compile.torch_internals.size_expressions import keys_at, value_at


@dataclass(frozen=True, eq=False)
class Call:
    """One compiled call: registers that go in, registers that come out, registers that are free after it."""

    function: Compiled
    arguments: tuple[int, ...]
    results: tuple[int, ...]
    release: tuple[int, ...]

    @cached_property
    def read(self) -> Callable[[list[Any]], Sequence[Any]]:
        """Return what gets the arguments from the registers: dozens for each call, so that C's loop is worth it."""
        if len(self.arguments) > 1:
            return itemgetter(*self.arguments)
        return lambda registers: [registers[index] for index in self.arguments]

    @property
    def ends(self) -> tuple[tuple[int, ...], ...]:
        """Return all registers that it touches."""
        return self.arguments, self.results, self.release


@dataclass(frozen=True)
class SharedMemory:
    """What a step leaves in memory that its caller could write to.

    Attributes:
        outputs: Positions of outputs that lie in slots, constants or prepared inputs.
        slots: Registers of slots that lie in inputs.
    """

    outputs: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True)
class StepKind:
    """What a step does, whatever slots it does it on.

    Attributes:
        number: That of the first step that makes the same calls, with the same constants.
        slots: Registers of the slots it touches, in the order of its calls: those of steps of one kind correspond.
    """

    number: int
    slots: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled plan for one signature of inputs.

    All values live in one list of registers: inputs first, then constants, coefficients, slots, and what the calls
    give. Slots, constants and coefficients keep their register for the whole trajectory.

    Attributes:
        steps: For each step its calls.
        outputs: Registers to return, in order (None for a None).
        registers: Number of registers.
        tensors: Constants, coefficients and other numbers of a step, by register.
        slots: Layout of each slot, by register.
        flops: FLOPs of each step.
        collectives: How often each step exchanges values with other processes.
        slot_keys: What each slot keeps, by register: programs of one plan have equal keys, whatever their registers.
        prepared: Number of inputs, the last ones, that the runtime computes before the step; none is the caller's.
        notes: Parts that the analysis and the passes left alone, and why.
        sizes: Sizes that differ between calls, by register; a program that has such runs at none but ``at`` them.
        numbers: The same as numbers, where it is ``at`` them.
        weights: Registers of fitted weights, by step and order, or ``OUTPUT``.
        shared_memory: By distinct step, filled at its first run.
    """

    steps: tuple[tuple[Call, ...], ...]
    outputs: tuple[int | None, ...]
    registers: int
    tensors: dict[int, torch.Tensor]
    slots: dict[int, Cut]
    flops: tuple[int, ...]
    collectives: tuple[int, ...] = ()
    slot_keys: dict[int, Hashable] = field(default_factory=dict)
    prepared: int = 0
    notes: tuple[Note, ...] = ()
    sizes: dict[int, Size] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)
    weights: dict[tuple[int, int], int] = field(default_factory=dict)
    shared_memory: dict[int, SharedMemory] = field(default_factory=dict, init=False)

    @cached_property
    def distinct_steps(self) -> tuple[int, ...]:
        """Return for each step the number of the first that makes the same calls on the same registers."""
        kinds: dict[object, int] = {}
        calls = [tuple((id(call.function), *call.ends) for call in step) for step in self.steps]
        return tuple(kinds.setdefault(made, number) for number, made in enumerate(calls))

    @cached_property
    def step_kinds(self) -> tuple[StepKind, ...]:
        """Return the kind of each step: samples at steps of one kind can share a call, each with slots of its own."""
        numbers: dict[object, int] = {}
        kinds = []
        for number, step in enumerate(self.steps):
            touched = [index for call in step for index in (*call.arguments, *call.results) if index in self.slots]
            place = {index: -1 - order for order, index in enumerate(dict.fromkeys(touched))}
            calls = tuple(
                (id(call.function), *(tuple(place.get(index, index) for index in ends) for ends in call.ends))
                for call in step
            )
            kinds.append(StepKind(numbers.setdefault(calls, number), tuple(place)))
        return tuple(kinds)

    @cached_property
    def registers_read(self) -> dict[int, frozenset[int]]:
        """Return the registers that each distinct step reads, and those of the outputs."""
        outputs = {index for index in self.outputs if index is not None}
        return {
            kind: frozenset(outputs.union(*(call.arguments for call in self.steps[kind])))
            for kind in set(self.distinct_steps)
        }

    def empty_registers(self) -> list[Any]:
        """Return registers with constants, coefficients and sizes in place; slots and all else are None."""
        known: dict[int, Any] = {**self.tensors, **self.numbers}
        return [known.get(number) for number in range(self.registers)]

    def at(self, sizes: Mapping[str, int]) -> "Program":
        """Return the program for calls of these sizes, by name; the code is shared, and slots have their layouts.

        Code that some graph's conditions do not cover is compiled.
        """
        if not sizes:
            return self
        functions = {call.function for step in self.steps for call in step}
        code = {each: each.at(sizes) if isinstance(each, SymbolicCode) else each for each in functions}
        return dataclasses.replace(
            self,
            steps=tuple(
                tuple(dataclasses.replace(call, function=code[call.function]) for call in step) for step in self.steps
            ),
            numbers={register: value_at(size.expression, sizes) for register, size in self.sizes.items()},
            slots={register: cut.at(sizes) for register, cut in self.slots.items()},
            slot_keys={register: keys_at(key, sizes) for register, key in self.slot_keys.items()},
            sizes={},
        )

    @property
    def slot_memory_bytes(self) -> int:
        """Return the memory of the slots of one branch of guidance."""
        return sum(cut.memory_bytes for cut in self.slots.values())


def build_program(structure: Structure, plan: Plan, lowering: Lowering, granularity: Granularity = "block") -> Program:
    """Bind a plan to a structure and compile all that it needs.

    Args:
        structure: The analysed denoiser; its regions must be those of the plan, in the same order.
        plan: The plan.
        lowering: Store of compiled subgraphs.
        granularity: Unit that is compiled as one graph: ``block`` or ``step``.
    """
    require_slot_dtype(plan, structure.regions[0].cuts[0].device)
    structure, plan = with_slots(structure, plan)
    require_token_axes(structure, plan)
    sharing = share_indices(structure, plan)
    rows = _rows(plan, sharing.uses)
    starts = [0, *itertools.accumulate(len(call.block.regions) for call in structure.calls)]
    builder = StepBuilder(structure, granularity)
    steps = []
    for step in range(plan.steps):
        accesses = tuple(tuple(row[step] for row in rows[start:stop]) for start, stop in itertools.pairwise(starts))
        subgraphs = builder.subgraphs(tuple(tuple(access.mode for access in call) for call in accesses))
        steps.append(StepSubgraphs(subgraphs, accesses))
    program = assemble(structure, steps, Registers(structure, starts, sharing), lowering)
    return dataclasses.replace(program, notes=(*structure.notes, *builder.notes))


def _rows(plan: Plan, uses: Sequence[Sequence[IndexUse]]) -> list[tuple[Access, ...]]:
    """Lay out the slot traffic of all regions, [region][step]."""
    weights = {(each.step, each.order): each.values for each in plan.weights}
    rows = []
    for name, actions, own in zip(plan.regions, plan.actions, uses, strict=True):
        if name == OUTPUT_NAME:
            rows.append(schedule_output(actions, weights))
        else:
            rows.append(schedule_region(actions, plan.pruning, own, weights, plan.slot_dtype))
    return rows


def assemble(structure: Structure, steps: Sequence[StepSubgraphs], registers: Registers, lowering: Lowering) -> Program:
    """Compile the subgraphs of all steps and resolve their arguments."""
    lowering.compile(subgraph for step in steps for subgraph in step.subgraphs)
    resolved = tuple(_calls(structure, number, step, registers, lowering) for number, step in enumerate(steps))
    outputs = tuple(registers.value(name) if name else None for name in structure.outputs)
    flops = tuple(sum(graph_flops(subgraph.graph) for subgraph in step.subgraphs) for step in steps)
    collectives = tuple(
        sum(counts_collective(node) for subgraph in step.subgraphs for node in subgraph.graph.nodes) for step in steps
    )
    return Program(
        resolved,
        outputs,
        registers.count,
        registers.tensors,
        registers.slots,
        flops,
        collectives,
        slot_keys=registers.slot_keys,
        sizes=registers.sizes,
        weights=registers.weights,
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

    def register(end: str | CallRole | Size, node: fx.Node) -> int:
        if isinstance(end, str):
            return registers.value(end)
        if isinstance(end, Size):
            return registers.size(end)
        return registers.role(end, node.meta["val"], number, step.accesses)

    def resolve(ends: Sequence[str | CallRole | Size], nodes: Sequence[fx.Node]) -> tuple[int, ...]:
        return tuple(register(end, node) for end, node in zip(ends, nodes, strict=True))

    calls = []
    for index, subgraph in enumerate(step.subgraphs):
        release = tuple(registers.value(name) for name, last in last_use.items() if last == index and name not in fixed)
        arguments = resolve(subgraph.inputs, subgraph.graph.find_nodes(op="placeholder"))
        results = resolve(subgraph.outputs, results_of(subgraph.graph))
        calls.append(Call(lowering.compiled[subgraph.key], arguments, results, release))
    return tuple(calls)
