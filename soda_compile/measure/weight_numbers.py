"""The weights of stale steps as numbers that least squares can choose."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from soda_compile.measure.gram import Floats
from soda_compile.measure.recording import Recording
from soda_compile.plans.actions import STALE
from soda_compile.plans.fitted_weights import OUTPUT, FittedWeights
from soda_compile.plans.operators import OPERATORS
from soda_compile.plans.plan import Plan
from soda_compile.plans.reads import reads

DIFFERENCE, NARROW_DIFFERENCE = 2.0**-6, 2.0**-3  # in a number; results in 16 bits need a larger one


@dataclass(frozen=True, eq=False)
class Numbers:
    """The numbers of some sets of weights.

    Attributes:
        polynomial: The sets as they are without fitting.
        values: For each set its numbers, float64.
    """

    polynomial: tuple[FittedWeights, ...]
    values: tuple[Floats, ...]

    @classmethod
    def of(cls, polynomial: Sequence[FittedWeights], fitted: Sequence[FittedWeights] = ()) -> "Numbers":
        """Return the numbers of the polynomial's sets, or of those that were fitted in their place.

        Args:
            polynomial: Of ``polynomial_weights``.
            fitted: Sets of some steps; those of another length than the polynomial's are left out.
        """
        given = {(each.step, each.order): each.values for each in fitted}
        sets = [(each, given.get((each.step, each.order), each.values)) for each in polynomial]
        values = [_numbers(each.order, own if len(own) == len(each.values) else each.values) for each, own in sets]
        return cls(tuple(polynomial), tuple(values))

    def at(self, step: int) -> "Numbers":
        """Return those of one step."""
        pairs = zip(self.polynomial, self.values, strict=True)
        chosen = [(each, own) for each, own in pairs if each.step == step]
        return Numbers(tuple(each for each, _ in chosen), tuple(own for _, own in chosen))

    def flat(self) -> Floats:
        """Return all numbers, one set after the other."""
        return np.concatenate(self.values)

    def with_flat(self, flat: Floats) -> "Numbers":
        """Return others in their place, in the order of ``flat``."""
        ends = np.cumsum([len(each) for each in self.values])
        return Numbers(self.polynomial, tuple(np.split(flat, ends[:-1])))

    def weights(self) -> tuple[FittedWeights, ...]:
        """Return the sets that they stand for, the polynomial's among them."""
        pairs = zip(self.polynomial, self.values, strict=True)
        return tuple(replace(each, values=_weights(each.order, own)) for each, own in pairs)

    def changed(self) -> tuple[FittedWeights, ...]:
        """Return the sets that are not those of the polynomial."""
        return tuple(each for each, home in zip(self.weights(), self.polynomial, strict=True) if each != home)


def polynomial_weights(plan: Plan, outputs: int = 0) -> tuple[FittedWeights, ...]:
    """Return the weights that stale regions have without fitting, where all that an operator serves read alike.

    A step that prunes writes over what it reads, so it cannot be tried twice and is left out.

    Args:
        plan: The plan.
        outputs: How many kept outputs are mixed with that of a stale step, each with a weight of zero.
    """
    rows = [reads(row) for row in plan.actions]
    found = []
    for step in range(plan.steps):
        actions = [row[step] for row in plan.actions]
        if any(action.kind == "prune" for action in actions):
            continue
        for action in STALE:
            sources = {tuple(row[step]) for row, own in zip(rows, actions, strict=True) if own == action}
            if len(sources) == 1:
                values = OPERATORS[action.order].coefficients(sources.pop(), step)
                found.append(FittedWeights(step, action.order, values))
        kept = min(outputs, sum(anchor < step for anchor in plan.anchors))
        if kept and found and found[-1].step == step:
            found.append(FittedWeights(step, OUTPUT, (1.0, *(0.0 for _ in range(kept)))))
    return tuple(found)


def by_order(sets: Sequence[FittedWeights]) -> dict[int, tuple[float, ...]]:
    """Return the values of one step's sets by order, as a ``Player`` takes them."""
    return {each.order: each.values for each in sets}


def by_step(sets: Sequence[FittedWeights]) -> Mapping[int, dict[int, tuple[float, ...]]]:
    """Return the values of sets by step and order."""
    return {step: by_order(list(own)) for step, own in itertools.groupby(sets, key=lambda each: each.step)}


def difference_for(recording: Recording) -> float:
    """Return the step of finite differences that the recorded outputs are precise enough for."""
    narrow = torch.finfo(recording.generations[0][0].calls[0].output.dtype).bits < 32
    return NARROW_DIFFERENCE if narrow else DIFFERENCE


def _numbers(order: int, weights: Sequence[float]) -> Floats:
    """Return the numbers that are fitted for some weights.

    For the output they are its scale, and factors of the differences from each output to the one before, as the ridge
    weighs numbers by what they change.
    """
    values = np.asarray(weights, dtype=np.float64)
    return values if order != OUTPUT else np.concatenate([[values.sum()], -values[::-1].cumsum()[::-1][1:]])


def _weights(order: int, numbers: Floats) -> tuple[float, ...]:
    """Return the weights for some of the numbers of ``_numbers``."""
    if order != OUTPUT:
        return tuple(numbers.tolist())
    scale, *factors = numbers.tolist()
    ends = [*factors, 0.0]
    return (scale + ends[0], *(after - before for before, after in itertools.pairwise(ends)))
