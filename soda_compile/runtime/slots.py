"""Sets of slots: the memory in which one branch of guidance keeps values, handed out and taken back."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from soda_compile.compiler.program import Program
from soda_compile.runtime.cuda_graphs import Recording, StepGraphs, stream_of


@dataclass(eq=False)
class Budget:
    """Memory of all slots of one model, under all plans.

    Attributes:
        say: Takes what the user should know once, by kind.
        used_bytes: Memory of the slots that are kept now.
        peak_bytes: The most so far.
    """

    say: Callable[[str, str], None]
    used_bytes: int = 0
    peak_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, memory_bytes: int, limit_bytes: int | None) -> bool:
        """Book memory, unless more than the limit would be used; return whether it was."""
        with self._lock:
            if limit_bytes is not None and self.used_bytes + memory_bytes > limit_bytes:
                return False
            self.used_bytes += memory_bytes
            self.peak_bytes = max(self.peak_bytes, self.used_bytes)
            return True

    def take_besides(self, what: str, memory_bytes: int, limit_bytes: int | None) -> bool:
        """Book memory for values that each step can compute as well; say once where there is no room.

        Args:
            what: The values, in words.
            memory_bytes: Their memory.
            limit_bytes: As for ``take``.
        """
        taken = self.take(memory_bytes, limit_bytes)
        if not taken:
            self.say(
                f"memory of {what}",
                f"{what} take {memory_bytes} bytes besides the {self.used_bytes} in use, which slot_memory_bytes="
                f"{limit_bytes} does not allow, so each step computes them; raise it, or run fewer generations at once",
            )
        return taken

    def give_back(self, memory_bytes: int) -> None:
        """Take back ``take``."""
        with self._lock:
            self.used_bytes -= memory_bytes


@dataclass(eq=False)
class Slots:
    """The registers of one branch of guidance under one program, slots and constants in place.

    Attributes:
        program: The program.
        registers: Its registers.
        budget: Where its memory is booked.
        pool: Where it goes back to.
        graphs: The steps recorded on these registers, where steps are recorded.
        stream: The device's stream on which they run; recorded steps stay there.
    """

    program: Program
    registers: list[Any]
    budget: Budget
    pool: "SlotPool"
    graphs: StepGraphs | None = None
    stream: int = 0

    def release(self) -> None:
        """Give the memory back; recorded steps are kept for the next generation, with it."""
        self.budget.give_back(self.program.slot_memory_bytes)
        if self.graphs is not None:
            self.pool.keep(self)


@dataclass(eq=False)
class SlotPool:
    """Hands out slots; at most one branch of guidance has a set at a time.

    Attributes:
        limit_bytes: Bound on the memory of all slots of the model; None for none.
        recording: Records steps; None runs them as they are.
    """

    limit_bytes: int | None = None
    recording: Recording | None = None
    _free: list[Slots] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, program: Program, budget: Budget, inputs: Sequence[Any]) -> Slots | None:
        """Return slots for a branch that begins, or None where the limit leaves no room for them."""
        if not budget.take(program.slot_memory_bytes, self.limit_bytes):
            return None
        stream = stream_of(inputs) if self.recording is not None else 0
        with self._lock:
            for slots in self._free:
                if slots.program is program and slots.stream == stream:
                    self._free.remove(slots)
                    return slots
        slots = Slots(program, new_registers(program), budget, self, stream=stream)
        if self.recording is not None:
            slots.graphs = self.recording.start(program, slots.registers, inputs)
        return slots

    def keep(self, slots: Slots) -> None:
        """Keep slots that are free, with their recorded steps."""
        with self._lock:
            self._free.append(slots)


def new_registers(program: Program, *, only_first: bool = False) -> list[Any]:
    """Return registers for a program, slots and constants in place; ``only_first`` the slots of its first step."""
    registers = program.empty_registers()
    touched = {index for call in program.steps[0] for index in call.arguments} if only_first else program.slots.keys()
    # A tensor born in inference mode could not be written outside of it later.
    with torch.inference_mode(False):
        for number, cut in program.slots.items():
            if number in touched:
                registers[number] = torch.empty_strided(cut.shape, cut.stride, dtype=cut.dtype, device=cut.device)
    return registers


def adopt(new: Slots, old: Slots) -> bool:
    """Move what a branch keeps to the slots of a program that was compiled anew for the same plan.

    Returns:
        Whether all of it found its place: it must be the same values, of the same shapes and dtypes.
    """
    by_key = {key: number for number, key in old.program.slot_keys.items()}
    keys = new.program.slot_keys
    if not keys or keys.keys() != new.program.slots.keys() or by_key.keys() != set(keys.values()):
        return False
    pairs = [(number, old.registers[by_key[key]]) for number, key in keys.items()]
    for number, value in pairs:
        cut = new.program.slots[number]
        if (cut.shape, cut.dtype, cut.device) != (tuple(value.shape), value.dtype, value.device):
            return False
    with torch.inference_mode(False), torch.no_grad():
        for number, value in pairs:
            new.registers[number].copy_(value)
    return True
