"""Fitted weights: numbers that replace those of the polynomial where stale regions read kept values.

The output of a stale step can have weights too: it is multiplied by one, and what the denoiser gave at the last one or
two anchors is added, each multiplied by another.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from soda_compile.errors import PlanError
from soda_compile.plans.actions import COMPUTE, STALE, Action

OUTPUT = -1
"""What stands in the place of an operator's order where weights are those of the denoiser's output."""
MOST_OUTPUTS = 2
"""Kept outputs that a stale step's output can be mixed with."""
_OUTPUT_NAME = "output"


@dataclass(frozen=True, order=True)
class FittedWeights:
    """The weights of one operator at one step, the same for all regions that it serves there; or of the output.

    Attributes:
        step: the step.
        order: order of the operator, by which it is known among OPERATORS; OUTPUT for the denoiser's output.
        values: weights of the kept values, newest first, order + 1 of them; they need not sum to 1. For the output,
            first that of the output itself, then those of one or two kept ones.

    Raises:
        PlanError: an unknown order, another number of weights than the operator reads values, or one not finite.
    """

    step: int
    order: int
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(map(float, self.values)))
        if self.order == OUTPUT:
            if len(self.values) not in range(2, MOST_OUTPUTS + 2):
                raise PlanError(
                    f"step {self.step} has {len(self.values)} weights for the output; give one for it, and one for "
                    f"each of 1 to {MOST_OUTPUTS} kept ones"
                )
            self._check_finite(_OUTPUT_NAME)
            return
        if isinstance(self.order, bool) or self.order not in range(len(STALE)):
            raise PlanError(f"step {self.step} has weights for order {self.order!r}; use 0 to {len(STALE) - 1}")
        action = STALE[self.order]
        if len(self.values) != action.history:
            raise PlanError(
                f"step {self.step} has {len(self.values)} weights for {action}, which reads {action.history} kept "
                "values; give one weight each, newest first"
            )
        self._check_finite(str(action))

    @property
    def name(self) -> str:
        """The name of the operator, or "output"."""
        return _OUTPUT_NAME if self.order == OUTPUT else str(STALE[self.order])

    def _check_finite(self, name: str) -> None:
        if not all(map(math.isfinite, self.values)):
            raise PlanError(f"step {self.step} has the weights {self.values} for {name}; they must be finite")


def check_weights(weights: Sequence[FittedWeights], actions: Sequence[Sequence[Action]]) -> None:
    """Check that each step has at most one set for an operator, and a region that it serves.

    Weights of the output need a step that does not compute everything, and as many anchors before it as they read.

    Args:
        weights: The sets.
        actions: Of the plan, indexed [region][step].

    Raises:
        PlanError: Naming the step.
    """
    steps, seen = len(actions[0]), set()
    for each in weights:
        place = (each.step, each.order)
        if place in seen:
            raise PlanError(f"step {each.step} has weights for {each.name} twice; give one set")
        seen.add(place)
        if each.order == OUTPUT:
            _check_output(each, actions)
            continue
        if each.step not in range(steps) or all(row[each.step] != STALE[each.order] for row in actions):
            raise PlanError(
                f"there are weights for {STALE[each.order]} at step {each.step}, where no region does that; take them "
                "out, or fit the plan again"
            )


def _check_output(each: FittedWeights, actions: Sequence[Sequence[Action]]) -> None:
    steps = len(actions[0])
    anchors = [step for step in range(steps) if all(row[step] == COMPUTE for row in actions)]
    if each.step not in range(steps) or each.step in anchors:
        raise PlanError(
            f"there are weights for the output at step {each.step}, which computes everything or does not exist; take "
            "them out, or fit the plan again"
        )
    before = sum(anchor < each.step for anchor in anchors)
    if len(each.values) - 1 > before:
        raise PlanError(
            f"the weights for the output at step {each.step} read {len(each.values) - 1} kept outputs, but {before} "
            "steps before it compute everything; fit the plan again"
        )


def to_json(weights: Sequence[FittedWeights]) -> dict[str, dict[str, list[float]]]:
    """Return the form that a plan file has: by step, by name of the operator."""
    by_step: dict[str, dict[str, list[float]]] = {}
    for each in weights:
        by_step.setdefault(str(each.step), {})[each.name] = list(each.values)
    return by_step


def from_json(data: Mapping[str, Mapping[str, Sequence[float]]]) -> tuple[FittedWeights, ...]:
    """Read what ``to_json`` gave.

    Raises:
        PlanError: A step is not a number, or an operator is not known.
    """
    orders = {str(action): action.order for action in STALE} | {_OUTPUT_NAME: OUTPUT}
    found = []
    for step, sets in data.items():
        for name, values in sets.items():
            if not step.isdecimal() or name not in orders:
                raise PlanError(
                    f"weights are given for {name!r} at step {step!r}; steps are numbers, operators {', '.join(orders)}"
                )
            found.append(FittedWeights(int(step), orders[name], tuple(values)))
    return tuple(found)
