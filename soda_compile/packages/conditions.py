"""Where the conditions of a graph, or of compiled code, on dynamic sizes do not hold."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from soda_compile.packages.sizes import Point
from soda_compile.packages.spaces import Space
from soda_compile.torch_internals.size_expressions import Expression, value_at
from soda_compile.torch_internals.tracing import SizeGuards

# Points at which a condition is tried: all sizes, or that many spread over them.
_TRIED = 1024


def broken(guards: SizeGuards, sizes: Mapping[Any, Expression], space: Space) -> Iterator[tuple[str, Point]]:
    """Yield conditions that do not hold everywhere, each with the smallest and the largest sizes where it does not.

    Args:
        guards: The conditions. That no size is 1, which would be broadcast, is one that they need not name.
        sizes: What the conditions' symbols stand for in the dimensions, by their names.
        space: All sizes.
    """
    for size in sizes.values():
        failing = [values for values in _points({size}, space) if value_at(size, values) < 2]
        yield from _ends(f"{size} > 1", failing)
    for condition in guards.conditions:
        about = guards.about(condition)
        failing = [
            values
            for values in _points({sizes[name] for name in about}, space)
            if not guards.holds(condition, {name: value_at(sizes[name], values) for name in about})
        ]
        yield from _ends(str(condition), failing)


def _ends(condition: str, failing: list[dict[str, int]]) -> Iterator[tuple[str, Point]]:
    yield from ((condition, values) for values in failing[:1] + failing[1:][-1:])


def _points(sizes: set[Expression], space: Space) -> Iterator[dict[str, int]]:
    """Yield values of all dimensions; those that the sizes depend on take all that they can, or many."""
    smallest = {name: low for name, (low, _) in space.ranges.items()}
    roots = {symbol.name for size in sizes for symbol in size.free_symbols} & space.ranges.keys()
    for point in _spread({name: space.ranges[name] for name in sorted(roots)}):
        yield smallest | point


def _spread(ranges: Mapping[str, tuple[int, int]]) -> Iterator[dict[str, int]]:
    """Yield all points, or points spread evenly with the ends among them."""
    most = max(2, math.floor(_TRIED ** (1 / max(1, len(ranges))) + 1e-9))
    values = []
    for low, high in ranges.values():
        count = min(most, high - low + 1)
        values.append(dict.fromkeys(low + (high - low) * index // max(1, count - 1) for index in range(count)))
    for point in itertools.product(*values):
        yield dict(zip(ranges, point, strict=True))
