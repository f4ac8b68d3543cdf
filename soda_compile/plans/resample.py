"""Tables of errors read between the steps at which they were measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soda_compile.plans.noise_schedule import SAME, Floats
from soda_compile.plans.operators import OPERATORS, Operator

_LEAST = 1e-38
"""Logarithms are taken of no less than this."""
Indices = NDArray[np.int64]
Table = NDArray[np.float32]
_OPERATORS = {operator.name: operator for operator in OPERATORS}


@dataclass(frozen=True, eq=False)
class Questions:
    """The entries of a table, as steps and distances of a measured schedule, all [S, W] or, for forecasts, [S, W, W].

    Attributes:
        step: measured step at which the value is used.
        distances: measured steps from there to the newest kept value, and for forecasts from one kept value to the
            next, the mean of them.
        exists: whether the kept values are not before the first step.
        valid: whether, on top, no distance is longer than was measured.
        exact: whether all these steps are measured ones.
    """

    step: Floats
    distances: tuple[Floats, ...]
    exists: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    exact: NDArray[np.bool_]

    @classmethod
    def of(cls, positions: Floats, order: int, width: int, measured_width: int) -> "Questions":
        """Ask for the entries of an operator.

        Args:
            positions: [S], where the steps of the new schedule lie among the measured ones.
            order: the operator's; 0 for reuse and pruning.
            width: W of the new schedule.
            measured_width: W of the measured one.
        """
        axes = (len(positions), *(width,) * (2 if order else 1))
        step, age, *spacing = np.indices(axes)
        kept = [step - age - 1]
        kept += [kept[0] - index * (spacing[0] + 1) for index in range(1, order + 1)]
        exists = kept[-1] >= 0
        used, *levels = (positions[np.maximum(index, 0)] for index in (step, *kept))
        distances = [used - levels[0]]
        if order:
            distances.append((levels[0] - levels[-1]) / order)
        near = [distance <= measured_width + SAME for distance in distances]
        exact = np.logical_and.reduce([level == np.round(level) for level in (used, *levels)])
        if order:
            exact &= distances[1] == np.round(distances[1])
        return cls(used, tuple(distances), exists, exists & np.logical_and.reduce(near), exact)


def resample(tables: Mapping[str, NDArray[Any]], where: Floats, width: int, variance: bool = False) -> dict[str, Table]:
    """Return tables at other steps, by the same keys; see ``read_between``.

    Args:
        tables: by metric and operator.
        where: [S], steps of the tables.
        width: W of what is returned.
        variance: the tables are variances, not means.
    """
    made = {}
    for key, table in tables.items():
        metric, _, name = key.partition(".")
        operator, values = _OPERATORS.get(name, OPERATORS[0]), table.astype(np.float64)
        questions = Questions.of(where, operator.order, width, table.shape[2])
        power = (2 if metric == "cosine" else 1) * (2 if variance else 1)  # 1 - cos goes with the squared distance
        read = read_between(values, questions, operator.order, power)
        reuse = tables.get(f"{metric}.{OPERATORS[0].name}")
        if operator.order and reuse is not None:
            slips = _slips(where, operator, questions, reuse.shape[2])
            if slips.valid.any():
                beside = np.nan_to_num(read_between(reuse.astype(np.float64), slips, 0, power))
                read = (read ** (2 / power) + beside ** (2 / power)) ** (power / 2)
        made[key] = np.ascontiguousarray(read, dtype=np.float32)
    return made


def _slips(where: Floats, operator: Operator, questions: Questions, measured_width: int) -> Questions:
    """Ask for the reuse of values as old as a forecast lands beside its step.

    Forecasts take steps for evenly spaced. Where they are not, a forecast of the steps' own places is off by some
    distance, and that of a region by what changes over this distance, on top of what was measured.
    """
    width = questions.valid.shape[1]
    step, age, spacing = (np.asarray(axis) for axis in np.indices(questions.valid.shape))
    ages = np.array([[operator.ages(n, m) for m in range(1, width + 1)] for n in range(1, width + 1)])
    weights = np.array([[operator.coefficients([-n for n in row], 0) for row in rows] for rows in ages.tolist()])
    kept = where[np.maximum(step[..., None] - ages[age, spacing], 0)]
    distance = np.abs((weights[age, spacing] * kept).sum(axis=-1) - questions.step)
    slips = questions.valid & (distance > SAME)
    return replace(questions, distances=(np.where(slips, np.minimum(distance, measured_width), 1.0),), valid=slips)


def read_between(table: Floats, questions: Questions, order: int, power: int) -> Floats:
    """Return the entries that are asked for, [S, R, ages, ...] float64; NaN where they are not valid.

    The error of a polynomial of degree k from values at distances a, a + b, ... a + k b goes with their product P. Its
    quotient by P changes slowly; its logarithm is interpolated, linearly in the step and in the logarithms of a
    and b. Below a distance of one step the last slope goes on, so that the error vanishes with the distance.

    Args:
        table: [T, R, W], or [T, R, W, W] for forecasts, with any axes behind.
        questions: the entries.
        order: k.
        power: the error goes with P to this power.
    """
    ages = 2 if order else 1
    logs = np.moveaxis(np.log(np.maximum(table, _LEAST)), 1, ages + 1)  # regions behind the ages
    sizes = logs.shape[1 : ages + 1]
    nodes = np.meshgrid(*(np.arange(1.0, size + 1) for size in sizes), indexing="ij")
    quotients = _before_the_first(logs - _behind(_law(nodes, order, power)[None], logs), ages)

    def found(step: Floats, distances: list[Floats]) -> Floats:
        values = _interpolate(quotients, step, distances)
        return values + _behind(_law(distances, order, power), values)

    least = [np.clip(each, 1, size).astype(int) - 1 for each, size in zip(questions.distances, sizes, strict=True)]
    unknown = np.asarray(
        np.isnan(quotients).all(axis=(0, *range(ages + 1, logs.ndim)))
    )  # reach too far back to be measured
    asked = questions.valid & ~unknown[tuple(least)]
    step, distances = questions.step[asked], [each[asked] for each in questions.distances]
    values = found(step, distances)
    near = np.flatnonzero(np.less(distances, 1).any(axis=0))
    if near.size:  # no worse than one step away
        values[near] = np.minimum(values[near], found(step[near], [np.maximum(each[near], 1.0) for each in distances]))
    errors = np.full((*asked.shape, *values.shape[1:]), np.nan)
    errors[asked] = np.where(values <= np.log(_LEAST) + 1, 0.0, np.exp(values))
    return np.moveaxis(errors, asked.ndim, 1)


def _behind(values: Floats, like: Floats) -> Floats:
    """Give values as many axes behind as another array has."""
    return values.reshape(*values.shape, *(1,) * (like.ndim - values.ndim))


def _law(distances: Sequence[Floats], order: int, power: int) -> Floats:
    """Return power * log of the product of the distances to all kept values."""
    age, *spacing = distances
    logs = [np.log(age)] + [np.log(age + index * spacing[0]) for index in range(1, order + 1)]
    return np.asarray(power * np.sum(logs, axis=0), dtype=np.float64)


def _before_the_first(logs: Floats, ages: int) -> Floats:
    """Fill in the first steps of each age, when nothing so old is kept yet, for interpolation alone.

    What an age is to the least one at its own first step, it is before.

    Args:
        logs: [T, ages, ...]; NaN at the first steps of each age, more of them the larger the age.
        ages: number of axes of ages.
    """
    least = _held_back(logs[(slice(None), *(slice(1),) * ages)])
    return _held_back(logs - least) + least


def _held_back(logs: Floats) -> Floats:
    """Give the steps before the first number of each column that number."""
    first = np.argmax(~np.isnan(logs), axis=0)[None]
    early = np.arange(len(logs)).reshape(-1, *(1,) * (logs.ndim - 1)) < first
    return np.where(early, np.take_along_axis(logs, first, axis=0), logs)


def _interpolate(logs: Floats, step: Floats, distances: list[Floats]) -> Floats:
    """Return [n, axes behind the ages] of a table [T, ages, ...] at real steps and distances, [n] each."""
    sides = [_linear(step, logs.shape[0])]
    sides += [_logarithmic(distance, size) for distance, size in zip(distances, logs.shape[1:], strict=False)]
    total = np.zeros((len(step), *logs.shape[len(sides) :]))
    for corner in product((0, 1), repeat=len(sides)):
        weight = np.prod([side[1] if end else 1 - side[1] for side, end in zip(sides, corner, strict=True)], axis=0)
        rows = np.flatnonzero(weight)  # what has no weight may be unknown
        where = tuple(side[0][rows] + end for side, end in zip(sides, corner, strict=True))
        total[rows] += _behind(weight[rows], total) * logs[where]
    return total


def _linear(step: Floats, count: int) -> tuple[Indices, Floats]:
    """Return the node before, and how far on towards the next; the ends hold."""
    step = np.clip(step, 0, count - 1)
    left = np.minimum(np.floor(step).astype(np.int64), max(count - 2, 0))
    return left, step - left


def _logarithmic(distance: Floats, count: int) -> tuple[Indices, Floats]:
    """Return the node before among the distances 1, 2, ... `count`, and how far on: below 0 for less than the first."""
    distance = np.minimum(distance, count)
    left = np.clip(np.floor(distance).astype(np.int64), 1, max(count - 1, 1))
    share = np.log(distance / left) / np.log((left + 1) / left)
    return left - 1, share if count > 1 else np.zeros_like(share)
