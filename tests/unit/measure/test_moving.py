"""Anchors are moved to where a plan is closer."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from planner_tables import make_sensitivity

import soda_compile
from soda_compile.measure.moving import Placed, move_anchors
from soda_compile.plans.plan import Plan

SENSITIVITY = make_sensitivity(steps=40, width=39)
EVEN = soda_compile.plan(SENSITIVITY, anchors=4, strategy=soda_compile.FixedInterval(operator="reuse"))
BEST = (0, 3, 21, 37)


def at(anchors: tuple[int, ...]) -> Plan:
    def row(region: int) -> tuple[soda_compile.Action, ...]:
        return tuple(
            EVEN.action(region, 0) if step in anchors else soda_compile.Action("reuse") for step in range(EVEN.steps)
        )

    return replace(EVEN, watched=None, actions=tuple(row(region) for region in range(len(EVEN.regions))))


def off(plan: Plan) -> npt.NDArray[np.float64]:
    return np.abs(np.subtract(plan.anchors, BEST)).astype(np.float64) + 0.5


def moved(tries: int) -> tuple[Placed, list[tuple[int, ...]]]:
    ran: list[tuple[int, ...]] = []

    def run(plan: Plan) -> npt.NDArray[np.float64]:
        ran.append(plan.anchors)
        return off(plan)

    return move_anchors(Placed(EVEN, off(EVEN)), at, run, lambda errors: float(errors.mean()), tries), ran


def test_the_closest_anchors_are_found() -> None:
    found, ran = moved(1000)
    assert found.plan.anchors == BEST
    assert found.errors.tolist() == [0.5] * 4
    assert len(ran) == len(set(ran)), "no plan is run twice"
    assert all(anchors[0] == 0 and list(anchors) == sorted(set(anchors)) for anchors in ran)


@pytest.mark.parametrize("tries", [0, 1, 5])
def test_no_more_are_run_than_may_be_and_the_closest_is_kept(tries: int) -> None:
    found, ran = moved(tries)
    assert len(ran) == tries
    assert off(found.plan).mean() == min(float(off(at(anchors)).mean()) for anchors in (EVEN.anchors, *ran))


def test_what_cannot_be_is_not_run() -> None:
    start = Placed(EVEN, off(EVEN))
    assert move_anchors(start, lambda anchors: None, off, lambda errors: float(errors.mean()), 10) is start


def test_a_plan_that_fails_is_not_taken() -> None:
    start = Placed(EVEN, off(EVEN))
    found = move_anchors(start, at, lambda plan: np.full(4, np.nan), lambda errors: float(errors.mean()), 10)
    assert found is start
