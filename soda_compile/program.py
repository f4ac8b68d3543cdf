"""The step program: for every step of a plan, a flat list of compiled calls with their arguments resolved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from soda_compile.lowering import Lowering
from soda_compile.operators import graph_flops
from soda_compile.plans import Plan
from soda_compile.schedule import Access, ring_size, schedule_region
from soda_compile.steps import StepBuilder, StepPieces
from soda_compile.structure import CoefficientInput, Cut, Structure
from soda_compile.torch_private import Compiled
from soda_compile.variants import CallRole


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
        inputs: Number of inputs, registers 0 to inputs - 1.
        outputs: Registers to return, in order (None for a None).
        registers: Number of registers.
        tensors: Constants and coefficients, by register.
        slots: Layout of each slot, by register.
        flops: For each step the FLOPs of what runs.
    """

    steps: tuple[tuple[Call, ...], ...]
    inputs: int
    outputs: tuple[int | None, ...]
    registers: int
    tensors: dict[int, torch.Tensor]
    slots: dict[int, Cut]
    flops: tuple[int, ...]

    @property
    def slot_memory_bytes(self) -> int:
        """Memory of the slots of one stream."""
        return sum(cut.memory_bytes for cut in self.slots.values())


def build_program(structure: Structure, plan: Plan, lowering: Lowering) -> Program:
    """Binds a plan to a structure and compiles all that it needs.

    Args:
        structure: The analysed denoiser; its regions must be those of the plan, in the same order.
        plan: What every region does at every step.
        lowering: Where compiled pieces are kept.
    """
    rows = [schedule_region(actions) for actions in plan.actions]
    bounds = _region_bounds(structure)
    builder = StepBuilder(structure)
    steps = []
    for step in range(plan.steps):
        accesses = tuple(tuple(row[step] for row in rows[start:stop]) for start, stop in bounds)
        pieces = builder.pieces(tuple(tuple(access.treatment for access in call) for call in accesses))
        steps.append(StepPieces(pieces, accesses))
    lowering.compile(piece for step in steps for piece in step.pieces)
    return _Registers(structure, bounds, [ring_size(row) for row in rows]).program(steps, lowering)


def _region_bounds(structure: Structure) -> list[tuple[int, int]]:
    """For each call the range of its regions in the plan."""
    bounds, start = [], 0
    for call in structure.calls:
        bounds.append((start, start + len(call.block.regions)))
        start += len(call.block.regions)
    return bounds


class _Registers:
    """Gives every value, slot and coefficient vector its register."""

    def __init__(self, structure: Structure, bounds: Sequence[tuple[int, int]], rings: Sequence[int]) -> None:
        self.structure = structure
        self.bounds = bounds
        self.values: dict[str, int] = {}
        self.tensors: dict[int, torch.Tensor] = {}
        self.slots: dict[int, Cut] = {}
        self._coefficients: dict[tuple[tuple[float, ...], torch.device], int] = {}
        self._slots: dict[tuple[int, int, int], int] = {}
        self.count = 0
        for name in structure.inputs:
            self.values[name] = self._new()
        for name, tensor in structure.constants.items():
            self.values[name] = self._new()
            self.tensors[self.values[name]] = tensor
        for number, (region, ring) in enumerate(zip(structure.regions, rings, strict=True)):
            for place in range(ring):
                for position, cut in enumerate(region.cuts):
                    register = self._new()
                    self._slots[number, position, place] = register
                    self.slots[register] = cut

    def _new(self) -> int:
        self.count += 1
        return self.count - 1

    def value(self, name: str) -> int:
        """The register of a named value."""
        if name not in self.values:
            self.values[name] = self._new()
        return self.values[name]

    def _role(self, source: CallRole, accesses: tuple[tuple[Access, ...], ...]) -> int:
        access = accesses[source.call][source.role.region]
        number = self.bounds[source.call][0] + source.role.region
        if isinstance(source.role, CoefficientInput):
            device = self.structure.regions[number].cuts[0].device
            key = (access.coefficients, device)
            if key not in self._coefficients:
                self._coefficients[key] = self._new()
                with torch.inference_mode(False):
                    tensor = torch.tensor(access.coefficients, dtype=torch.float32, device=device)
                self.tensors[self._coefficients[key]] = tensor
            return self._coefficients[key]
        return self._slots[number, source.role.cut, access.places[source.role.age or 0]]

    def program(self, steps: Sequence[StepPieces], lowering: Lowering) -> Program:
        """Resolves all arguments."""
        resolved = tuple(self._calls(step, lowering) for step in steps)
        outputs = tuple(self.value(name) if name else None for name in self.structure.outputs)
        flops = tuple(sum(graph_flops(piece.module.graph) for piece in step.pieces) for step in steps)
        return Program(resolved, len(self.structure.inputs), outputs, self.count, self.tensors, self.slots, flops)

    def _calls(self, step: StepPieces, lowering: Lowering) -> tuple[Call, ...]:
        last_use = {
            source: index
            for index, piece in enumerate(step.pieces)
            for source in piece.inputs
            if isinstance(source, str)
        }
        fixed = {*self.structure.inputs, *self.structure.constants, *self.structure.outputs}
        calls = []
        for index, piece in enumerate(step.pieces):
            arguments = tuple(
                self.value(source) if isinstance(source, str) else self._role(source, step.accesses)
                for source in piece.inputs
            )
            release = tuple(self.value(name) for name, last in last_use.items() if last == index and name not in fixed)
            results = tuple(self.value(name) for name in piece.outputs)
            calls.append(Call(lowering.compiled[piece.key], arguments, results, release))
        return tuple(calls)
