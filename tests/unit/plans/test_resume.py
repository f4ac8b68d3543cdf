"""What is left of a plan when a trajectory begins in the middle."""

from dataclasses import replace

import numpy as np
import pytest
from random_plans import random_plan

from soda_compile.errors import PlanError
from soda_compile.plans.actions import ACTIONS
from soda_compile.plans.plan import Plan
from soda_compile.plans.resume import resume_at, within

SYMBOLS = {action.symbol: action for action in ACTIONS}


def plan_of(*rows: str) -> Plan:
    actions = tuple(tuple(SYMBOLS[symbol] for symbol in row) for row in rows)
    return Plan("", tuple(f"region{number}" for number in range(len(rows))), actions, flop_ratio=0.5)


@pytest.mark.parametrize(
    ("row", "start", "left"),
    [
        ("CCr1C1", 0, "CCr1C1"),
        ("CCr1C1", 1, "CrrC1"),  # one value is not enough to forecast
        ("CCr1C1", 2, "CrC1"),
        ("CCr1C1", 5, "C"),
        ("CCCr2C2", 1, "CCr1C2"),  # two values make a line
    ],
)
def test_rows(row: str, start: int, left: str) -> None:
    assert resume_at(plan_of(row), start).rows == (left,)


@pytest.mark.parametrize("seed", range(20))
def test_what_can_stay_stays(seed: int) -> None:
    plan = random_plan(seed, ("a", "b", "c"), 12)
    start = int(np.random.default_rng(seed).integers(1, 12))
    left = resume_at(plan, start)
    assert left.steps == 12 - start
    for before, after in zip(plan.rows, left.rows, strict=True):
        assert after[0] == "C"
        assert [symbol == "C" for symbol in after[1:]] == [symbol == "C" for symbol in before[start + 1 :]]


def test_it_says_what_it_is() -> None:
    plan = plan_of("CCrC")
    assert resume_at(plan, 0) is plan
    assert resume_at(plan, 2).flop_ratio is None
    assert dict(resume_at(plan, 2).method)["start"] == 2
    assert resume_at(plan, 2).digest != resume_at(plan, 1).digest
    with pytest.raises(PlanError, match="steps 0 to 3; it has no step 4"):
        resume_at(plan, 4)


def test_a_plan_of_a_part_computes_the_rest_of_the_schedule() -> None:
    plan = replace(plan_of("Cr", "CC"), timesteps=(3.0, 2.0))
    whole = within(replace(plan, method=(("first_step", 1),)), 1, (4.0, 3.0, 2.0, 1.0))
    assert whole.rows == ("CCrC", "CCCC")
    assert whole.timesteps == (4.0, 3.0, 2.0, 1.0)
    assert whole.flop_ratio == (1 + 0.5 * 2 + 1) / 4
    assert "first_step" not in dict(whole.method)
    assert within(plan, 0, (3.0, 2.0)) is plan
    for first, steps in ((-1, 4), (3, 4), (1, 2)):
        with pytest.raises(PlanError, match="do not lie in a schedule"):
            within(plan, first, range(steps))
