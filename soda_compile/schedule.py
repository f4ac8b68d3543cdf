"""Turns a plan's rows into slot traffic: what is stored where, what is read, with which coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from soda_compile.plans import Action


@dataclass(frozen=True)
class Treatment:
    """What a block graph does with one region: the action, and whether a computed cut is stored."""

    action: Action
    store: bool = False

    @property
    def computes(self) -> bool:
        """Whether the region's heavy work runs."""
        return self.action.kind == "compute"


@dataclass(frozen=True)
class Access:
    """One region at one step.

    Attributes:
        treatment: Which rewrite the block graph gets.
        places: Which of the region's slots the graph touches: the one to write for a computed region that is
            stored; those to read, newest first, for reuse and forecast.
        coefficients: Weights of the values read, for a forecast.
    """

    treatment: Treatment
    places: tuple[int, ...] = ()
    coefficients: tuple[float, ...] = ()


def schedule_region(actions: Sequence[Action]) -> tuple[Access, ...]:
    """Lays out one region's row of a plan.

    Slots form a ring over the computed values that are read later, so a value is written where the oldest one was
    and nothing is ever moved.
    """
    computed_before = _computed_before(actions)
    reads = [computed_before[step][: action.history] for step, action in enumerate(actions)]
    stored = sorted({source for sources in reads for source in sources})
    depth = max((action.history for action in actions), default=0)
    place = {source: index % depth for index, source in enumerate(stored)}
    row = []
    for step, (action, sources) in enumerate(zip(actions, reads, strict=True)):
        if action.kind == "compute":
            row.append(Access(Treatment(action, store=step in place), (place[step],) if step in place else ()))
        else:
            coefficients = lagrange(sources, step) if action.kind == "forecast" else ()
            row.append(Access(Treatment(action), tuple(place[source] for source in sources), coefficients))
    return tuple(row)


def ring_size(row: Sequence[Access]) -> int:
    """How many copies of the region's cuts must be kept."""
    return max((place + 1 for access in row for place in access.places), default=0)


def lagrange(points: Sequence[int], at: int) -> tuple[float, ...]:
    """Weights of the values at ``points`` in the polynomial through them, evaluated at ``at``; they sum to 1."""
    weights = []
    for point in points:
        weight = 1.0
        for other in points:
            if other != point:
                weight *= (at - other) / (point - other)
        weights.append(weight)
    return tuple(weights)


def _computed_before(actions: Sequence[Action]) -> list[list[int]]:
    """For each step the earlier computed steps, newest first."""
    before: list[list[int]] = []
    seen: list[int] = []
    for step, action in enumerate(actions):
        before.append(seen[::-1])
        if action.kind == "compute":
            seen = [*seen, step]
    return before
