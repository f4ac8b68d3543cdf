"""Knows what conditions the steps of a trajectory before they come, from the trajectory before."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from soda_compile.compiler.program import Program
from soda_compile.runtime.execution import run_ahead


@dataclass(eq=False)
class ConditioningCache:
    """The conditions of one stream: recorded in one trajectory, used in the next ones.

    What was the same at all steps (labels, a text) is taken from the first step of the new trajectory; what changed
    (the timestep) is taken as it was. Each step compares what it is given, and whatever differs is computed for the
    step alone. On a device, comparing numbers would wait for it. There a condition must be the very tensor of the
    first step; and of the one that changes, a schedule must say that it is the same again.
    """

    _schedule: Hashable = None
    _record: list[list[torch.Tensor]] = field(default_factory=list)  # copies, [step][condition]
    _changes: tuple[bool, ...] = ()  # for each condition, whether it differs between steps
    _first: list[tuple[torch.Tensor, int | None, torch.Tensor]] = field(default_factory=list)
    _values: list[tuple[torch.Tensor, ...]] | None = None

    def conditioning(
        self, program: Program, step: int, inputs: Sequence[Any], schedule: Hashable
    ) -> tuple[torch.Tensor, ...] | None:
        """What ``run_step`` takes as given at a step; None where it must be computed.

        Args:
            program: What is run, always the same; its conditioning is apart.
            step: The step of the program.
            inputs: The inputs of the captured graph.
            schedule: Says which timesteps the trajectory has; None if that is unknown.
        """
        assert program.ahead is not None
        given = [inputs[index] for index, _ in program.ahead.reads]
        if step == 0:
            self._values = self._begin(program, given, inputs, schedule)
        if self._values is None:
            if len(self._record) == step:
                self._record.append([value.clone() for value in given])
            return None
        if not self._as_expected(step, given):
            self._values, self._record = None, []
            return None
        return self._values[step]

    def _begin(
        self, program: Program, given: list[torch.Tensor], inputs: Sequence[Any], schedule: Hashable
    ) -> list[tuple[torch.Tensor, ...]] | None:
        complete = len(self._record) == len(program.steps)
        if not complete or schedule != self._schedule:
            self._schedule, self._record, self._changes = schedule, [], ()
            return None
        if not self._changes:
            self._changes = tuple(
                any(not torch.equal(now[number], value) for now in self._record[1:])
                for number, value in enumerate(self._record[0])
            )
        self._first = [(value, _version(value), value.clone()) for value in given]
        if not self._may_know() or not self._as_expected(0, given):
            self._record, self._changes = [], ()
            return None
        conditions = [
            torch.stack([now[number] for now in self._record])
            if changes
            else value.expand(len(self._record), *value.shape)
            for number, (changes, value) in enumerate(zip(self._changes, given, strict=True))
        ]
        return run_ahead(program, inputs, [value.contiguous() for value in conditions])

    def _may_know(self) -> bool:
        """Whether the timesteps can be known: by reading them, or by a schedule if nothing else changes."""
        changing = [value for value, changes in zip(self._record[0], self._changes, strict=True) if changes]
        if all(map(_on_host, changing)):
            return True
        return self._schedule is not None and len(changing) == 1 and changing[0].ndim < 2

    def _as_expected(self, step: int, given: Sequence[torch.Tensor]) -> bool:
        """Whether a step is given what the conditioning was computed from."""
        for number, value in enumerate(given):
            first, version, copy = self._first[number]
            if _on_host(value):
                if not torch.equal(value, self._record[step][number] if self._changes[number] else copy):
                    return False
            elif not self._changes[number] and (value is not first or version is None or _version(value) != version):
                return False
        return True


def _on_host(value: torch.Tensor) -> bool:
    """Whether its numbers can be read without waiting for a device."""
    return value.device.type == "cpu"


def _version(value: torch.Tensor) -> int | None:
    """Counts writes to a tensor; None for one born in inference mode, which does not count."""
    return None if value.is_inference() else value._version
