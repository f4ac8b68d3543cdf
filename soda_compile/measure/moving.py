"""Moves the anchors of a plan for as long as recorded generations come closer under it.

Plans are made from errors of single intervals, of values or of the sample. What a whole schedule leaves in the last
sample is not their sum: what one interval leaves is carried on and corrected by the next ones, the more so the fewer
anchors there are. So the closest plan is run again with single anchors moved.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from soda_compile.measure.gram import Floats
from soda_compile.planner.anchor_count import Anchors
from soda_compile.plans.plan import Plan

FIRST = 0.25  # distance that anchors are moved by at first, of the mean distance between them; then it is halved


@dataclass(frozen=True, eq=False)
class Placed:
    """A plan, and how far it takes the recorded generations.

    Attributes:
        plan: The plan.
        errors: Relative L2 of the last sample, float64 [samples].
    """

    plan: Plan
    errors: Floats


def move_anchors(
    start: Placed,
    at: Callable[[Anchors], Plan | None],
    run: Callable[[Plan], Floats],
    size: Callable[[Floats], float],
    tries: int,
) -> Placed:
    """Move one anchor after the other, and keep what is closer, until nothing is or enough was tried.

    Args:
        start: The plan to begin with; its first anchor stays.
        at: Makes the plan with other anchors; None where that cannot be.
        run: Gives the errors of a plan.
        size: What of the errors shall be small.
        tries: Most plans that are run.
    """
    best, known = start, {start.plan.anchors}
    distance = max(1, round(FIRST * start.plan.steps / len(start.plan.anchors)))
    while distance:
        before = best
        for place, by in _moves(len(start.plan.anchors), distance):
            anchors = _moved(best.plan.anchors, place, by, start.plan.steps)
            if anchors is None or anchors in known or (plan := at(anchors)) is None:
                continue
            if len(known) > tries:
                return best
            known.add(anchors)
            errors = run(plan)
            if size(errors) < size(best.errors):
                best = Placed(plan, errors)
        if best is before:
            distance //= 2
    return best


def _moves(count: int, distance: int) -> Iterator[tuple[int, int]]:
    """Yield the place of an anchor, and by how many steps it is moved."""
    for place in range(1, count):
        yield from ((place, -distance), (place, distance))


def _moved(anchors: Anchors, place: int, by: int, steps: int) -> Anchors | None:
    """Return anchors with one moved; None where it would meet another one or the end."""
    following = (*anchors[place + 1 :], steps)[0]
    step = anchors[place] + by
    return (*anchors[:place], step, *anchors[place + 1 :]) if anchors[place - 1] < step < following else None
