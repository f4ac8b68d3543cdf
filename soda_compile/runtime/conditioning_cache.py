"""Conditioning of the steps of a trajectory, computed for all at once where the plan or a trajectory foretells it."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from soda_compile.compiler.conditioning_stage import ConditioningStage
from soda_compile.runtime.execution import run_once
from soda_compile.runtime.slots import Budget
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

    @classmethod
    def by_plan(cls, now: Sequence[torch.Tensor], timestep: int, timesteps: Sequence[float]) -> "Conditions":
        """Return what comes where nothing but the timestep changes, and that as the plan says.

        Args:
            now: The conditions of the first step.
            timestep: Which of them is the timestep.
            timesteps: The plan's.
        """
        changes = tuple(number == timestep for number in range(len(now)))
        steps = tuple(
            tuple(torch.full_like(value, time) if moves else value for value, moves in zip(now, changes, strict=True))
            for time in timesteps
        )
        return cls(None, steps, changes)

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
    those that changed (the timestep) are taken from the plan, or as they were in the last one. Each step compares its
    conditions and the weights with these, and what differs is computed for the step alone. On a device, comparing
    numbers would wait for it. There a condition must be the very tensor of the first step; and of the one that
    changes, a schedule must say that it is the same as in the last trajectory.

    Attributes:
        seen: The newest whole trajectory by key, which all generations share, for where the plan does not foretell it.
            None where weights are put in place anew for each call, as where they are stored in fewer bits.
        key: Key of the branch of guidance in ``seen``.
        timestep: Position of the timestep among the inputs of the captured graph, if the plan knows it.
        timesteps: Timesteps of the steps of this branch, if the plan knows them.
        budget: Where the memory of the values of all steps is booked.
        limit_bytes: Bound on that memory and the other of the model; where it leaves no room, that is said.
    """

    seen: dict[Hashable, Conditions | None]
    key: Hashable
    timestep: int | None
    timesteps: Sequence[float]
    budget: Budget
    limit_bytes: int | None
    _booked_bytes: int = 0
    _foretold: Conditions | None = None
    _record: list[tuple[torch.Tensor, ...]] = field(default_factory=list)
    _first: list[Seen] = field(default_factory=list)
    _weights: list[Seen] = field(default_factory=list)
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
        if stage.all_steps is None or self.seen.get(self.key, ()) is None:
            return run_once(stage.one_step, inputs)
        conditions = [inputs[index] for index in stage.conditions]
        if step == 0:
            self.release()
            self._table = self._begin(stage, conditions, inputs, schedule)
        if self._table is not None:
            as_foretold = self._matches(step, conditions)
            if as_foretold and self._weights_are_still(stage, inputs):
                return self._table[step]
            if not as_foretold:
                self.seen.pop(self.key, None)
            elif step == 1:
                self.seen[self.key] = None
            self.release()
        elif len(self._record) == step:
            self._note(stage, conditions, schedule)
        return run_once(stage.one_step, inputs)

    def release(self) -> None:
        """Give the memory back."""
        self.budget.give_back(self._booked_bytes)
        self._booked_bytes, self._table = 0, None

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
        """Return the values of all steps, if it can be said now what will condition them."""
        assert stage.all_steps is not None
        self._foretold = foretold = self._foretell(stage, conditions, schedule)
        if foretold is None:
            return None
        self._first = [Seen.of(value, numbers=True) for value in conditions]
        if not self._matches(0, conditions):
            return None
        if not self.budget.take_besides("conditions of all steps", stage.memory_bytes, self.limit_bytes):
            return None
        self._booked_bytes += stage.memory_bytes
        self._weights = [Seen.of(inputs[index], numbers=False) for index in stage.weights]
        stacked = list(inputs)
        for number, (index, changes) in enumerate(zip(stage.conditions, foretold.changes, strict=True)):
            recorded = [now[number] for now in foretold.steps]
            stacked[index] = torch.stack(recorded if changes else [conditions[number]] * stage.steps)
        return list(zip(*(value.unbind(0) for value in run_once(stage.all_steps, stacked)), strict=True))

    def _foretell(
        self, stage: ConditioningStage, conditions: Sequence[torch.Tensor], schedule: Hashable
    ) -> Conditions | None:
        """Say what comes by the plan, or where that or the host cannot tell, by the trajectory before."""
        if self.timestep in stage.conditions and len(self.timesteps) == stage.steps:
            timestep = stage.conditions.index(self.timestep)
            if on_host(conditions[timestep]):
                return Conditions.by_plan(conditions, timestep, self.timesteps)
        before = self.seen.get(self.key)
        return before if before is not None and before.predicts(schedule) else None

    def _weights_are_still(self, stage: ConditioningStage, inputs: Sequence[Any]) -> bool:
        return all(seen.is_still(inputs[index]) for seen, index in zip(self._weights, stage.weights, strict=True))

    def _matches(self, step: int, conditions: Sequence[torch.Tensor]) -> bool:
        """Return whether the conditions of a step are those that the table was computed from."""
        foretold = self._foretold
        assert foretold is not None
        for number, value in enumerate(conditions):
            if not foretold.changes[number]:
                if not self._first[number].is_still(value):
                    return False
            elif on_host(value) and not torch.equal(value, foretold.steps[step][number]):
                return False
        return True
