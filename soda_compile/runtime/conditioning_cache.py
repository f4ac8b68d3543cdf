"""Conditioning of the steps of a trajectory, computed for all at once where a trajectory before foretells it."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from soda_compile.compiler.conditioning_stage import ConditioningStage
from soda_compile.runtime.execution import run_once
from soda_compile.runtime.unchanged import Seen, on_host


@dataclass(frozen=True, eq=False)
class Conditions:
    """The conditions of a whole trajectory.

    Attributes:
        schedule: Key of its timesteps; None if they are unknown.
        steps: Copies, [step][condition].
        changes: For each condition, whether it differs between steps.
    """

    schedule: Hashable
    steps: tuple[tuple[torch.Tensor, ...], ...]
    changes: tuple[bool, ...]

    def predicts(self, schedule: Hashable) -> bool:
        """Return whether the timesteps can be read, or follow from a schedule with nothing else that changes."""
        if schedule != self.schedule:
            return False
        changing = [value for value, changes in zip(self.steps[0], self.changes, strict=True) if changes]
        if all(map(on_host, changing)):
            return True
        return schedule is not None and len(changing) == 1 and changing[0].ndim < 2


@dataclass(eq=False)
class ConditioningCache:
    """Values of the conditioning stage for one branch of guidance in one generation.

    Conditions that were the same at all steps (labels, a text) are taken from the first step of this trajectory;
    those that changed (the timestep) are taken as they were in the last one. Each step compares its conditions with
    these, and what differs is computed for the step alone. On a device, comparing numbers would wait for it. There a
    condition must be the very tensor of the first step; and of the one that changes, a schedule must say that it is
    the same again.

    Attributes:
        seen: The newest whole trajectory by key, which all generations share.
        key: Key of the branch of guidance in ``seen``.
    """

    seen: dict[Hashable, Conditions]
    key: Hashable
    _foretold: Conditions | None = None
    _record: list[tuple[torch.Tensor, ...]] = field(default_factory=list)
    _first: list[Seen] = field(default_factory=list)
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
        if self._table is not None and self._foretold is not None:
            if self._matches(step, conditions, self._foretold):
                return self._table[step]
            self._table = None
            self.seen.pop(self.key, None)
        elif stage.all_steps is not None and len(self._record) == step:
            self._note(stage, conditions, schedule)
        return run_once(stage.one_step, inputs)

    def _note(self, stage: ConditioningStage, conditions: Sequence[torch.Tensor], schedule: Hashable) -> None:
        """Keep copies of the conditions of a step, and share them when the trajectory is whole."""
        self._record.append(tuple(value.clone() for value in conditions))
        if len(self._record) == stage.steps:
            first, *later = self._record
            changes = tuple(
                any(not torch.equal(now[number], value) for now in later) for number, value in enumerate(first)
            )
            self.seen[self.key] = Conditions(schedule, tuple(self._record), changes)

    def _begin(
        self, stage: ConditioningStage, conditions: list[torch.Tensor], inputs: Sequence[Any], schedule: Hashable
    ) -> list[tuple[torch.Tensor, ...]] | None:
        foretold = self.seen.get(self.key)
        if stage.all_steps is None or foretold is None or not foretold.predicts(schedule):
            return None
        self._foretold = foretold
        self._first = [Seen.of(value, numbers=True) for value in conditions]
        if not self._matches(0, conditions, foretold):
            return None
        stacked = list(inputs)
        for number, (index, changes) in enumerate(zip(stage.conditions, foretold.changes, strict=True)):
            recorded = [now[number] for now in foretold.steps]
            stacked[index] = torch.stack(recorded if changes else [conditions[number]] * stage.steps)
        return list(zip(*(value.unbind(0) for value in run_once(stage.all_steps, stacked)), strict=True))

    def _matches(self, step: int, conditions: Sequence[torch.Tensor], foretold: Conditions) -> bool:
        """Return whether the conditions of a step are those that the table was computed from."""
        for number, value in enumerate(conditions):
            if not foretold.changes[number]:
                if not self._first[number].is_still(value):
                    return False
            elif on_host(value) and not torch.equal(value, foretold.steps[step][number]):
                return False
        return True
