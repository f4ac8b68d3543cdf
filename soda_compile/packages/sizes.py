"""Sizes that depend on dynamic dimensions: sums of products, as text ``4*height*width + 3``."""

import functools
import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

Point = Mapping[str, int]


@dataclass(frozen=True)
class Size:
    """A sum of terms, each a factor and the names of dimensions that it is multiplied by.

    Factors are whole for sizes; for other numbers that a model computes from sizes they may be fractions.
    """

    terms: tuple[tuple[float, tuple[str, ...]], ...]

    def at(self, values: Mapping[str, Any]) -> Any:
        """Return the size where the dimensions have these values: numbers, symbols or nodes of a graph."""
        factors = ([values[part] if isinstance(part, str) else part for part in _parts(*term)] for term in self.terms)
        products = [functools.reduce(operator.mul, parts) for parts in factors]
        return functools.reduce(operator.add, products) if products else 0

    @property
    def names(self) -> frozenset[str]:
        """Return the dimensions that it depends on."""
        return frozenset(name for _, names in self.terms for name in names)

    @property
    def linear(self) -> tuple[str, int, int] | None:
        """Return name, scale and shift, where it is a multiple of one dimension, plus a number."""
        named = [(factor, names) for factor, names in self.terms if names]
        if len(named) != 1 or len(named[0][1]) != 1:
            return None
        scale, shift = named[0][0], sum(factor for factor, names in self.terms if not names)
        return (named[0][1][0], scale, shift) if isinstance(scale, int) and isinstance(shift, int) else None

    def __str__(self) -> str:
        return " + ".join("*".join(map(str, _parts(*term))) for term in self.terms)


def _parts(factor: float, names: tuple[str, ...]) -> list[Any]:
    """Return what is multiplied in a term: no factor of 1 before a name."""
    return [*([factor] if factor != 1 or not names else []), *names]


def read_size(text: str) -> Size:
    """Return the size that ``str`` wrote."""
    terms = []
    for term in text.split(" + "):
        first, *rest = term.split("*")
        factor, names = (1, [first, *rest]) if first.isidentifier() else (int(first), rest)
        terms.append((factor, tuple(names)))
    return Size(tuple(terms))


def size_at(size: int | str, values: Point) -> int:
    """Return the size in a package's description where the dimensions have these values."""
    return size if isinstance(size, int) else int(read_size(size).at(values))


def show(point: Point) -> str:
    """Return ``batch=2, height=3``."""
    return ", ".join(f"{name}={value}" for name, value in point.items())


def fit(points: Sequence[Point], values: Sequence[int]) -> int | Size | None:
    """Return the size that has these values at these points; None if no sum of products with whole factors has.

    Args:
        points: All combinations of two values for each dimension at least; more points are checked.
        values: The size at each point.
    """
    if len(set(values)) == 1:
        return values[0]
    products, factors = _solve(points, values)
    terms = tuple((round(factor), group) for factor, group in zip(factors, products, strict=True) if round(factor))
    size = Size(terms[::-1])
    return size if all(size.at(point) == value for point, value in zip(points, values, strict=True)) else None


def fit_number(points: Sequence[Point], values: Sequence[float]) -> Size | None:
    """Return the same for a floating point number that the model computes from sizes, such as a scale of positions."""
    products, factors = _solve(points, values)
    simple = [float(Fraction(factor).limit_denominator(1 << 16)) for factor in factors]
    size = Size(tuple((factor, group) for factor, group in zip(simple, products, strict=True) if factor))
    close = (math.isclose(size.at(point), value, rel_tol=1e-12) for point, value in zip(points, values, strict=True))
    return size if all(close) else None


def _solve(points: Sequence[Point], values: Sequence[float]) -> tuple[list[tuple[str, ...]], list[float]]:
    """Return all products of dimensions, and the factors with which they come nearest to the values."""
    names = [name for name in points[0] if len({point[name] for point in points}) > 1]
    products = [group for count in range(len(names) + 1) for group in itertools.combinations(names, count)]
    rows = [[math.prod(point[name] for name in group) for group in products] for point in points]
    factors = np.linalg.lstsq(np.array(rows, dtype=float), np.array(values, dtype=float))[0]
    return products, [float(factor) for factor in factors]
