"""What is compared at anchors: the forecast that would have been used there with what is computed."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from soda_compile.compiler.program import Program
from soda_compile.compiler.schedule import schedule_region
from soda_compile.plans.actions import Action
from soda_compile.plans.operators import OPERATORS
from soda_compile.plans.plan import Plan
from soda_compile.plans.watched_region import forecasts_at_anchors

MOST_ELEMENTS = 2**20
"""Of each kept value, so many are looked at, or not many more: the time for it stays that of a few small kernels."""


@dataclass(frozen=True)
class Watchpoint:
    """The comparison at one anchor step.

    Attributes:
        sources: For each cut of the watched region the registers of the values that the forecast reads, newest first.
        written: For each cut the register of what is computed.
        coefficients: Weights of the values read.
        expected: The error in the calibration; None where it is not known.
    """

    sources: tuple[tuple[int, ...], ...]
    written: tuple[int, ...]
    coefficients: tuple[float, ...]
    expected: float | None

    def forecasts(self, registers: Sequence[Any]) -> list[torch.Tensor]:
        """Return the forecast of each cut; the step that comes may write over what it is made of."""
        return [self._forecast([_part(registers[source]) for source in sources]) for sources in self.sources]

    def _forecast(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        forecast = values[0] * self.coefficients[0]
        for value, weight in zip(values[1:], self.coefficients[1:], strict=True):
            forecast.add_(value, alpha=weight)
        return forecast

    def error(self, forecasts: Sequence[torch.Tensor], registers: Sequence[Any]) -> torch.Tensor:
        """Return the relative error of the forecasts once the step has run, norm of the difference / norm, 0-dim."""
        computed = [_part(registers[register]) for register in self.written]
        missed = [one - other for one, other in zip(forecasts, computed, strict=True)]
        return _norm(missed) / (_norm(computed) + 1e-30)


def watchpoints(program: Program, plan: Plan) -> dict[int, Watchpoint]:
    """Return the comparisons of a plan by anchor step; none where the program does not say what its slots keep.

    None either where that is rounded: it would be told apart from what is computed by its rounding.
    """
    if plan.slot_dtype is not None:
        return {}
    registers = {key: register for register, key in program.slot_keys.items()}
    number, actions, steps = _watched(plan)
    row = schedule_region(actions)
    expected = dict(plan.watched.errors) if plan.watched is not None else {}
    found = {}
    for step, read in steps.items():
        sources, written = [], []
        for cut in itertools.count():
            key = ("cut", number, cut, row[step].places[0])
            if key not in registers:
                break
            written.append(registers[key])
            sources.append(tuple(registers["cut", number, cut, place] for place in row[step - 1].places))
        if written:
            coefficients = OPERATORS[len(read) - 1].coefficients(read, step)
            found[step] = Watchpoint(tuple(sources), tuple(written), coefficients, expected.get(step))
    return found


def keeps_between(plan: Plan) -> dict[int, bool]:
    """Return for each step of a plan that is no anchor whether anything that it computes is kept."""
    rows = [schedule_region(actions, plan.pruning) for actions in plan.actions]
    between = [step for step in range(plan.steps) if step not in plan.anchors]
    return {step: any(row[step].mode.writes for row in rows) for step in between}


def _watched(plan: Plan) -> tuple[int, Sequence[Action], dict[int, tuple[int, ...]]]:
    """Return the number of the watched region, what it does, and what its forecasts are made of by step.

    Where the plan names none it is the last one that has any forecast at an anchor. What a stack keeps has the number
    after the regions', all of which do the same.
    """
    if plan.slots == "stack":
        return len(plan.regions), plan.actions[0], forecasts_at_anchors(plan.actions[0], plan.anchors)
    if plan.watched is not None:
        number = plan.regions.index(plan.watched.region)
        return number, plan.actions[number], forecasts_at_anchors(plan.actions[number], plan.anchors)
    for number in reversed(range(len(plan.regions))):
        steps = forecasts_at_anchors(plan.actions[number], plan.anchors)
        if steps:
            return number, plan.actions[number], steps
    return 0, plan.actions[0], {}


def _norm(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the norm of some values as one vector."""
    norms: list[torch.Tensor] = [torch.linalg.vector_norm(value) for value in values]
    if len(norms) > 1:
        norms = [torch.linalg.vector_norm(torch.stack(norms))]
    (norm,) = norms  # most regions have one cut, and what these operators cost is the host's time
    return norm


def _part(value: torch.Tensor) -> torch.Tensor:
    """Return evenly spaced parts along the longest axis, in float32, as norms of half precision would overflow."""
    stride = math.ceil(value.numel() / MOST_ELEMENTS)
    if stride > 1:
        longest = max(range(value.ndim), key=lambda axis: value.shape[axis])
        value = value.movedim(longest, 0)[:: min(stride, value.shape[longest])]
    return value.float()
