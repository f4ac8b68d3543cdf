"""Where the conditions of a graph, or of compiled code, on dynamic sizes do not hold."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from soda_compile.packages.sizes import Point
from soda_compile.packages.spaces import Space
from soda_compile.torch_internals.size_expressions import Expression, value_at
from soda_compile.torch_internals.tracing import SizeGuards

SizesGuarded = tuple[SizeGuards, Mapping[Any, Expression]]
"""Conditions, and what their symbols stand for in the dimensions, by their names.

That no size is 1, which would be broadcast, is a condition that they need not name.
"""

# Points at which a condition is tried: all sizes, or that many spread over them.
_TRIED = 1024


@dataclass(frozen=True, eq=False)
class Condition:
    """A condition on the dimensions.

    Attributes:
        text: What it says, in the symbols of the graph.
        dims: Names of the dimensions that it is about.
        holds: Whether it surely does at a point.
    """

    text: str
    dims: tuple[str, ...]
    holds: Callable[[Point], bool]

    def failing(self, space: Space) -> list[dict[str, int]]:
        """Return the points where it does not hold; dimensions that it is not about are at their smallest."""
        smallest = {name: low for name, (low, _) in space.ranges.items()}
        points = (smallest | point for point in _spread({name: space.values(name) for name in self.dims}))
        return [point for point in points if not self.holds(point)]


def broken(guards: Sequence[SizesGuarded], space: Space) -> Iterator[tuple[str, Point]]:
    """Yield conditions that do not hold everywhere, each with the smallest and the largest sizes where it does not."""
    for condition in _conditions(guards, space):
        failing = condition.failing(space)
        yield from ((condition.text, point) for point in failing[:1] + failing[1:][-1:])


def other_values(guards: Sequence[SizesGuarded], space: Space) -> dict[str, dict[int, str]]:
    """Return the values of a dimension at which a condition on it alone does not hold, each with the condition."""
    found: dict[str, dict[int, str]] = {}
    for condition in _conditions(guards, space):
        if len(condition.dims) == 1:
            (name,) = condition.dims
            for point in condition.failing(space):
                found.setdefault(name, {}).setdefault(point[name], condition.text)
    return found


def _conditions(several: Sequence[SizesGuarded], space: Space) -> Iterator[Condition]:
    for guards, sizes in several:
        yield from _conditions_of(guards, sizes, space)


def _conditions_of(guards: SizeGuards, sizes: Mapping[Any, Expression], space: Space) -> Iterator[Condition]:
    def dims_of(names: set[Any]) -> tuple[str, ...]:
        roots = {symbol.name for name in names for symbol in sizes[name].free_symbols}
        return tuple(name for name in space.ranges if name in roots)

    for name, size in sizes.items():
        yield Condition(f"{size} > 1", dims_of({name}), lambda point, size=size: value_at(size, point) > 1)  # type: ignore[misc]
    for condition in guards.conditions:
        about = guards.about(condition)

        def holds(point: Point, condition: Any = condition, about: set[Any] = about) -> bool:
            return guards.holds(condition, {name: value_at(sizes[name], point) for name in about})

        yield Condition(str(condition), dims_of(about), holds)


def _spread(values: Mapping[str, list[int]]) -> Iterator[dict[str, int]]:
    """Yield all points, or points spread evenly with the ends among them."""
    most = max(2, math.floor(_TRIED ** (1 / max(1, len(values))) + 1e-9))
    tried = []
    for own in values.values():
        count = min(most, len(own))
        tried.append(dict.fromkeys(own[(len(own) - 1) * index // max(1, count - 1)] for index in range(count)))
    for point in itertools.product(*tried):
        yield dict(zip(values, point, strict=True))
