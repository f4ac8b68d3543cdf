"""Conditioning of the steps of a trajectory, computed for all at once where the trajectory before foretells it."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from soda_compile.compiler.conditioning_stage import ConditioningStage
from soda_compile.runtime.execution import run_once


@dataclass(eq=False)
class ConditioningCache:
    """Values of the conditioning stage for one branch of guidance, foretold from the trajectory before.

    Conditions that were the same at all steps (labels, a text) are taken from the first step of the new trajectory;
    those that changed (the timestep) are taken as they were. Each step compares its conditions with these, and what
    differs is computed for the step alone. On a device, comparing numbers would wait for it. There a condition must be
    the very tensor of the first step; and of the one that changes, a schedule must say that it is the same again.
    """

    _schedule: Hashable = None
    _record: list[list[torch.Tensor]] = field(default_factory=list)  # copies, [step][condition]
    _changes: tuple[bool, ...] = ()  # for each condition, whether it differs between steps
    _first: list[tuple[torch.Tensor, int | None, torch.Tensor]] = field(default_factory=list)
    _table: list[tuple[torch.Tensor, ...]] | None = None  # [step][value]

    def values(
        self, stage: ConditioningStage, step: int, inputs: Sequence[Any], schedule: Hashable
    ) -> Sequence[torch.Tensor]:
        """Return the values of a step, which the step program takes after the inputs of the captured graph.

        Args:
            stage: The conditioning stage, always the same.
            step: Steps since the branch began.
            inputs: The inputs of the captured graph.
            schedule: Key of the trajectory's timesteps; None if they are unknown.
        """
        conditions = [inputs[index] for index in stage.conditions]
        if step == 0:
            self._table = self._begin(stage, conditions, inputs, schedule)
        if self._table is not None:
            if self._matches(step, conditions):
                return self._table[step]
            self._table, self._record = None, []
        elif stage.all_steps is not None and len(self._record) == step:
            self._record.append([value.clone() for value in conditions])
        return run_once(stage.one_step, inputs)

    def _begin(
        self, stage: ConditioningStage, conditions: list[torch.Tensor], inputs: Sequence[Any], schedule: Hashable
    ) -> list[tuple[torch.Tensor, ...]] | None:
        if stage.all_steps is None or len(self._record) < stage.steps or schedule != self._schedule:
            self._schedule, self._record, self._changes = schedule, [], ()
            return None
        if not self._changes:
            self._changes = tuple(
                any(not torch.equal(now[number], value) for now in self._record[1:])
                for number, value in enumerate(self._record[0])
            )
        self._first = [(value, _version(value), value.clone()) for value in conditions]
        if not self._is_predictable() or not self._matches(0, conditions):
            self._record, self._changes = [], ()
            return None
        stacked = list(inputs)
        for number, (index, changes) in enumerate(zip(stage.conditions, self._changes, strict=True)):
            recorded = [now[number] for now in self._record]
            stacked[index] = torch.stack(recorded if changes else [conditions[number]] * stage.steps)
        return list(zip(*(value.unbind(0) for value in run_once(stage.all_steps, stacked)), strict=True))

    def _is_predictable(self) -> bool:
        """Return whether the timesteps can be read, or follow from a schedule with nothing else that changes."""
        changing = [value for value, changes in zip(self._record[0], self._changes, strict=True) if changes]
        if all(map(_on_host, changing)):
            return True
        return self._schedule is not None and len(changing) == 1 and changing[0].ndim < 2

    def _matches(self, step: int, conditions: Sequence[torch.Tensor]) -> bool:
        """Return whether the conditions of a step are those that the table was computed from."""
        for number, value in enumerate(conditions):
            first, version, copy = self._first[number]
            if _on_host(value):
                if not torch.equal(value, self._record[step][number] if self._changes[number] else copy):
                    return False
            elif not self._changes[number] and (value is not first or version is None or _version(value) != version):
                return False
        return True


def _on_host(value: torch.Tensor) -> bool:
    """Return whether its numbers can be read without waiting for a device."""
    return value.device.type == "cpu"


def _version(value: torch.Tensor) -> int | None:
    """Return the number of writes to a tensor; None for one born in inference mode, which does not count them."""
    return None if value.is_inference() else value._version
