"""How generations of a model go: their steps, their timesteps, and the denoiser calls of each."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Numbers = Mapping[str, float]
"""The numbers among the inputs of a call, by name: graphs of one model may have them in another order."""


@dataclass(frozen=True)
class Schedule:
    """The course of a generation.

    Attributes:
        steps: Number of steps.
        calls_per_step: Denoiser calls in a step, at most.
        timesteps: Of each step; none where no input tells.
    """

    steps: int
    calls_per_step: int
    timesteps: tuple[float, ...] = ()

    def agrees(self, timesteps: Sequence[float]) -> bool:
        """Return whether these are its timesteps, but for rounding."""
        return len(timesteps) == len(self.timesteps) and all(map(is_same, timesteps, self.timesteps))


@dataclass(frozen=True)
class Call:
    """One denoiser call.

    Attributes:
        numbers: Those among its inputs.
        step: Its step, where whoever opened the generation tells it.
    """

    numbers: Numbers
    step: int | None = None


def schedule_of(calls: Sequence[Call], timestep: str | None) -> tuple[Schedule, tuple[int, ...]]:
    """Return the schedule of a generation, and the step of each of its calls.

    Steps are told by whoever opened the generation, or else by the timestep where each has equally many calls; any
    other call is a step of its own, as of solvers that call at each timestep as often as they like.

    Args:
        calls: All of its calls.
        timestep: Which of the numbers runs one way; None if none does.
    """
    values = [None if timestep is None else call.numbers.get(timestep) for call in calls]
    steps = [call.step for call in calls]
    if None in steps:
        runs = [len(list(run)) for _, run in itertools.groupby(values)]
        alike = None not in values and len(set(runs)) == 1
        steps = [number for number, run in enumerate(runs) for _ in range(run)] if alike else list(range(len(calls)))
    places = tuple(step for step in steps if step is not None)
    counts = [places.count(step) for step in range(max(places) + 1)]
    first = [next((value for value, place in zip(values, places, strict=True) if place == step), None)
             for step in range(len(counts))]  # fmt: skip
    timesteps = tuple(value for value in first if value is not None)
    one_way = len(timesteps) == len(counts) and len({math.copysign(1, b - a) * (a != b)
                                                     for a, b in itertools.pairwise(timesteps)}) == 1  # fmt: skip
    return Schedule(len(counts), max(counts), timesteps if one_way else ()), places


def is_same(one: float, other: float) -> bool:
    """Return whether two timesteps are equal, but for rounding."""
    return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-6)
