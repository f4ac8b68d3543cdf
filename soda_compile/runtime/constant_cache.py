"""Constants of a generation: computed when a step first reads them, and again when what they depend on has changed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from soda_compile.compiler.constant_stage import ConstantStage
from soda_compile.runtime.execution import addresses, forget_inputs
from soda_compile.runtime.slots import Budget
from soda_compile.runtime.unchanged import Seen


@dataclass(eq=False)
class ConstantCache:
    """Values of the constant stage for one branch of guidance in one generation.

    Attributes:
        budget: Where their memory is booked.
        limit_bytes: Bound on that memory and the other of the model; where it leaves no room, that is said.
    """

    budget: Budget
    limit_bytes: int | None
    _booked_bytes: int | None = None
    _registers: list[Any] = field(default_factory=list)
    _done: set[int] = field(default_factory=set)  # numbers of calls whose results are in their registers
    _seen: dict[int, Seen] = field(default_factory=dict)  # by position of the input

    def values(
        self, stage: ConstantStage, inputs: Sequence[Any], needed: frozenset[int]
    ) -> Sequence[torch.Tensor | None]:
        """Return the values, which the step program takes after the inputs of the captured graph.

        Args:
            stage: The constant stage, always the same.
            inputs: The inputs of the captured graph.
            needed: Numbers of the values that are read; the others may be None.
        """
        if self._booked_bytes is None:
            taken = self.budget.take_besides("constants of a generation", stage.memory_bytes, self.limit_bytes)
            self._booked_bytes = stage.memory_bytes if taken else 0
        if self._booked_bytes < stage.memory_bytes:
            return compute(stage, inputs, needed)
        changed = {at for at, seen in self._seen.items() if not seen.is_still(inputs[at])}
        for at in changed:
            del self._seen[at]
        self._done -= {number for number in self._done if not stage.reads[number].isdisjoint(changed)}
        due = [number for number in stage.calls_for(needed) if number not in self._done]
        if not self._registers:
            self._registers = stage.program.empty_registers()
        for number in due:
            for at in stage.reads[number] - self._seen.keys():
                self._seen[at] = Seen.of(inputs[at], numbers=not stage.weights[at])
        _run(stage, due, self._registers, inputs)
        self._done.update(due)
        return [self._registers[number] for number in stage.program.outputs]  # type: ignore[index]

    def release(self) -> None:
        """Give the memory back."""
        self.budget.give_back(self._booked_bytes or 0)
        self._booked_bytes = 0
        self._registers = []


def compute(stage: ConstantStage, inputs: Sequence[Any], needed: frozenset[int]) -> Sequence[torch.Tensor | None]:
    """Compute values for one call of the denoiser, see ``ConstantCache.values``."""
    registers = stage.program.empty_registers()
    _run(stage, stage.calls_for(needed), registers, inputs)
    return [registers[number] for number in stage.program.outputs]  # type: ignore[index]


def _run(stage: ConstantStage, numbers: Sequence[int], registers: list[Any], inputs: Sequence[Any]) -> None:
    """Run some of the calls. What they give is ours: the caller may write to the inputs afterwards."""
    if not numbers:
        return
    given = addresses(value for value, weight in zip(inputs, stage.weights, strict=True) if not weight)
    registers[: len(inputs)] = inputs
    try:
        for number in numbers:
            call = stage.program.steps[0][number]
            results = call.function(*call.read(registers))
            for index, value in zip(call.results, results, strict=True):
                registers[index] = value.clone() if addresses([value]) & given else value
    finally:
        forget_inputs(registers, len(inputs))
