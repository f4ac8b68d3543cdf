"""Calls that several generations share, each at a step of its own; what they keep is divided by sample.

Steps of one kind make the same calls on other slots, so for such a call the slots of its generations are put side by
side. Where the same generations were together before, what they kept still lies side by side, and nothing is moved.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from soda_compile.analysis.sample_rules import SampleAxis
from soda_compile.ir.structure import Cut
from soda_compile.runtime.branches import Branches
from soda_compile.runtime.call_counter import CountedCall
from soda_compile.runtime.execution import run_owned
from soda_compile.runtime.misses import Miss
from soda_compile.runtime.placing import require_covered
from soda_compile.runtime.slots import Budget
from soda_compile.runtime.statistics import ModelStatistics, statistics_of

if TYPE_CHECKING:
    from soda_compile.runtime.denoiser import PlannedDenoiser
    from soda_compile.runtime.generation import Generation


@dataclass(frozen=True, eq=False)
class Rows:
    """What one generation keeps of a value: its part of what a batch computed.

    Attributes:
        batch: The value of the whole batch.
        number: Which generation of the batch it is.
        count: Number of generations in the batch.
        axis: The axis of samples of ``batch``; None if there is one generation.
    """

    batch: torch.Tensor
    number: int
    count: int
    axis: SampleAxis | None


@dataclass(eq=False)
class SampleState:
    """What one branch of guidance of one generation keeps.

    Attributes:
        budget: Where its memory is booked.
        memory_bytes: Its memory.
        rows: By key of the slot.
        step: The plan's step that was run last.
    """

    budget: Budget
    memory_bytes: int
    rows: dict[Hashable, Rows] = field(default_factory=dict)
    step: int = -1

    def release(self) -> None:
        """Give the memory back."""
        self.budget.give_back(self.memory_bytes)
        self.rows.clear()


class Apart(Exception):
    """Some generations of a call cannot share it; nothing has been computed.

    Attributes:
        misses: Why, by their number in the call.
    """

    def __init__(self, misses: Mapping[int, Miss]) -> None:
        super().__init__(str(misses))
        self.misses = misses


@dataclass(eq=False)
class Together:
    """One denoiser call of several generations; each has equally many rows of the batch, in order.

    Attributes:
        generations: The generations.
        misses: Why the plan covers none of them, so that everything is computed; None where it covers all.
        denoiser: What was called.
    """

    generations: Sequence["Generation"]
    misses: Sequence[Miss] | None = None
    denoiser: "PlannedDenoiser | None" = None

    def run(self, denoiser: "PlannedDenoiser", inputs: Sequence[Any]) -> list[Any]:
        """Run the step that is due; inputs and outputs are those of the captured graph.

        Raises:
            Apart: The timesteps of some are not those that are due.
        """
        self.denoiser = denoiser
        statistics = statistics_of(inputs[denoiser.model_key])
        branches = [branches_of(denoiser, each) for each in self.generations]
        calls = [each.counter.place(one.clock) for each, one in zip(branches, self.generations, strict=True)]
        if self.misses is not None:
            for each, one, call, miss in zip(branches, self.generations, calls, self.misses, strict=True):
                statistics.miss(one, miss)
                if miss.kind == "late":  # others are no calls of the plan, and move nothing on
                    each.counter.count(one.clock, call)
            return denoiser.compute_all(inputs)
        self._require_timesteps(denoiser, calls, inputs)
        for each, one, call in zip(branches, self.generations, calls, strict=True):
            each.counter.count(one.clock, call)
        try:
            return self._run(denoiser, branches, calls, statistics, inputs)
        except BaseException:
            for each, call in zip(branches, calls, strict=True):
                each.drop(call.branch)
            raise

    def _require_timesteps(
        self, denoiser: "PlannedDenoiser", calls: Sequence[CountedCall], inputs: Sequence[Any]
    ) -> None:
        misses = {}
        for number, (call, one) in enumerate(zip(calls, self.generations, strict=True)):
            timestep = denoiser.read_timestep(inputs, number / len(calls))
            try:
                require_covered(denoiser, call, one.clock, timestep)
            except Miss as miss:
                misses[number] = miss
        if misses:
            raise Apart(misses)

    def _run(
        self,
        denoiser: "PlannedDenoiser",
        branches: Sequence[Branches[SampleState]],
        calls: Sequence[CountedCall],
        statistics: ModelStatistics,
        inputs: Sequence[Any],
    ) -> list[Any]:
        program, samples = denoiser.program, denoiser.samples()
        states = [self._state(denoiser, each, call, statistics) for each, call in zip(branches, calls, strict=True)]
        kinds = [program.step_kinds[call.step] for call in calls]
        step = kinds[0].number
        slots = program.step_kinds[step].slots
        registers = program.empty_registers()
        for place, register in enumerate(slots):
            keys = (samples[kind.slots[place]].key for kind in kinds)
            kept = [state.rows.get(key) if state else None for state, key in zip(states, keys, strict=True)]
            registers[register] = _side_by_side(kept, program.slots[register], samples[register].axis)
        outputs = run_owned(program, step, registers, denoiser.prepared(inputs, step))
        regions = denoiser.starting_at(0).regions
        for number, (state, kind, call) in enumerate(zip(states, kinds, calls, strict=True)):
            if state is not None:
                for register, own in zip(slots, kind.slots, strict=True):
                    rows = Rows(registers[register], number, len(calls), samples[register].axis)
                    state.rows[samples[own].key] = rows
                state.step = call.step
                statistics.count(self.generations[number], regions[call.step])
            if call.step == denoiser.plan.steps - 1:
                branches[number].drop(call.branch)
        return outputs

    def _state(
        self,
        denoiser: "PlannedDenoiser",
        branches: Branches[SampleState],
        call: CountedCall,
        statistics: ModelStatistics,
    ) -> SampleState | None:
        """Return what the branch keeps; None where there is no memory for it to begin with."""
        if call.step == 0:
            branches.drop(call.branch)
            memory_bytes = denoiser.program.slot_memory_bytes // len(self.generations)
            if not statistics.budget.take(memory_bytes, denoiser.pool.limit_bytes):
                return None
            branches.states[call.branch] = SampleState(statistics.budget, memory_bytes)
        return branches.states[call.branch]


def branches_of(denoiser: "PlannedDenoiser", generation: "Generation") -> Branches[SampleState]:
    """Return the branches of guidance of a generation that shares its calls."""
    key = ("batched", denoiser.plan.digest)
    found: Branches[SampleState] = generation.branches(key, denoiser.plan.calls_per_step)
    return found


def due(denoiser: "PlannedDenoiser", generation: "Generation") -> int | Miss:
    """Return the kind of the step at which a generation is, or why the plan does not cover its next call."""
    branches = branches_of(denoiser, generation)
    call = branches.counter.place(generation.clock)
    try:
        require_covered(denoiser, call, generation.clock, None)
    except Miss as miss:
        return miss
    state = branches.states.get(call.branch)
    if call.step and (state is None or state.step != call.step - 1):
        where = "has not run" if state is None else f"last ran step {state.step}"
        return Miss(
            "late",
            f"branch {call.branch} of guidance is called for step {call.step}, but in this generation it {where}; "
            "in a batch a branch must be called at every step, from the first, and have room for what it keeps",
        )
    return denoiser.program.step_kinds[call.step].number


def _side_by_side(kept: Sequence[Rows | None], slot: Cut, axis: SampleAxis | None) -> torch.Tensor:
    """Return the slot of a batch, with what its generations keep."""
    rows = [each for each in kept if each is not None]
    complete = len(rows) == len(kept)  # else it is about to be written for the first time
    if complete and _lie_so(rows, slot):
        return rows[0].batch
    with torch.inference_mode(False):  # it may be written to in another mode later
        value = torch.empty_strided(slot.shape, slot.stride, dtype=slot.dtype, device=slot.device)
    for number, each in enumerate(rows if complete else ()):
        found = axis or each.axis
        assert found is not None, "a batch of one that was one before is taken as it is"
        _part(value, found, number, len(rows)).copy_(_part(each.batch, found, each.number, each.count))
    return value


def _lie_so(rows: Sequence[Rows], slot: Cut) -> bool:
    """Return whether rows are those of one batch, all of it in order."""
    batch = rows[0].batch
    return batch.stride() == slot.stride and all(
        each.batch is batch and (each.number, each.count) == (number, len(rows)) for number, each in enumerate(rows)
    )


def _part(value: torch.Tensor, axis: SampleAxis, number: int, count: int) -> torch.Tensor:
    """Return a view of the rows of one of ``count`` generations."""
    samples = value.shape[axis.axis] // (axis.outer * axis.inner)
    folded = (axis.outer, samples, axis.inner)
    unfolded = value.view(*value.shape[: axis.axis], *folded, *value.shape[axis.axis + 1 :])
    return unfolded.narrow(axis.axis + 1, number * (samples // count), samples // count)
