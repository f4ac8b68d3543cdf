"""Fitted weights in a plan: checks, file form, and plans of other parts of a schedule."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from soda_compile.errors import PlanError
from soda_compile.plans.actions import ACTIONS
from soda_compile.plans.fitted_weights import OUTPUT, FittedWeights
from soda_compile.plans.plan import Plan
from soda_compile.plans.resume import resume_at, within

SYMBOLS = {action.symbol: action for action in ACTIONS}
ROWS = ("CCr1C1", "CCrrC1")
WEIGHTS = (FittedWeights(2, 0, (0.9,)), FittedWeights(3, 1, (1.5, -0.25)), FittedWeights(5, 1, (1, 0.5)))


def plan_of(*rows: str, **changes: Any) -> Plan:
    actions = tuple(tuple(SYMBOLS[symbol] for symbol in row) for row in rows)
    return replace(Plan("", tuple("abc"[: len(rows)]), actions), **changes)


PLAN = plan_of(*ROWS, weights=WEIGHTS)


def test_the_file_gives_them_back() -> None:
    assert Plan.from_json(PLAN.to_json()) == PLAN
    assert Plan.from_json(PLAN.to_json()).weights == WEIGHTS
    written = json.loads(PLAN.to_json())["weights"]
    assert written == {"2": {"reuse": [0.9]}, "3": {"forecast1": [1.5, -0.25]}, "5": {"forecast1": [1.0, 0.5]}}


def test_a_plan_without_them_is_what_it_was() -> None:
    plain = plan_of(*ROWS)
    assert "weights" not in json.loads(plain.to_json())
    assert plain != PLAN
    assert plain.digest != PLAN.digest
    assert str(plain) == str(PLAN)
    assert plain.rows == PLAN.rows


def test_their_order_does_not_matter() -> None:
    assert plan_of(*ROWS, weights=WEIGHTS[::-1]) == PLAN


@pytest.mark.parametrize(
    ("values", "reason"),
    [((1.0,), "has 1 weights for forecast1, which reads 2"), ((1.0, float("nan")), "must be finite")],
)
def test_impossible_values(values: tuple[float, ...], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        FittedWeights(3, 1, values)


@pytest.mark.parametrize("order", [4, -2, True])
def test_impossible_orders(order: int) -> None:
    with pytest.raises(PlanError, match="use 0 to 3"):
        FittedWeights(3, order, (1.0, 2.0))


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ((FittedWeights(4, 0, (1.0,)),), "weights for reuse at step 4, where no region does that"),
        ((FittedWeights(6, 1, (1.0, 0.0)),), "at step 6, where no region"),
        ((FittedWeights(2, 0, (1.0,)), FittedWeights(2, 0, (0.5,))), "reuse twice"),
    ],
)
def test_weights_that_nothing_reads(weights: tuple[FittedWeights, ...], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        plan_of(*ROWS, weights=weights)


@pytest.mark.parametrize(
    "weights", [{"x": {"reuse": [1.0]}}, {"2": {"hope": [1.0]}}, {"2": {"reuse": ["1"]}}, {"2": {"reuse": [1.0, 2.0]}}]
)
def test_damaged_files(weights: Mapping[str, Any]) -> None:
    data = json.loads(PLAN.to_json())
    with pytest.raises(PlanError, match=r"plan\.json"):
        Plan.from_json(json.dumps({**data, "weights": weights}), source="plan.json")


def test_what_begins_later_keeps_the_weights_of_values_that_it_still_has() -> None:
    assert resume_at(PLAN, 1).weights == (replace(WEIGHTS[0], step=1), replace(WEIGHTS[2], step=4))
    assert resume_at(PLAN, 2).weights == ()  # step 5 reads steps 4 and 2, not 4 and 1
    late = plan_of("CCCC1", weights=(FittedWeights(4, 1, (2.0, -1.5)),))
    assert resume_at(late, 2).weights == (FittedWeights(2, 1, (2.0, -1.5)),)


def test_a_part_of_a_longer_schedule() -> None:
    whole = within(PLAN, 2, tuple(range(9, 0, -1)))
    assert whole.weights == tuple(replace(each, step=each.step + 2) for each in WEIGHTS)


MIXED = (FittedWeights(1, OUTPUT, (0.9, 0.1)), FittedWeights(3, OUTPUT, (1.1, -0.2, 0.1)))


def test_weights_of_the_output_are_in_the_file() -> None:
    plan = plan_of("CrC1C", "CrC1C", weights=(*MIXED, FittedWeights(3, 1, (1.0, 0.1))))
    assert json.loads(plan.to_json())["weights"]["3"] == {"output": [1.1, -0.2, 0.1], "forecast1": [1.0, 0.1]}
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (FittedWeights(2, OUTPUT, (1.0, 0.0)), "output at step 2, which computes everything"),
        (FittedWeights(9, OUTPUT, (1.0, 0.0)), "output at step 9, which computes everything or does not exist"),
        (FittedWeights(1, OUTPUT, (1.0, 0.0, 0.0)), "at step 1 read 2 kept outputs, but 1 steps before it"),
    ],
)
def test_weights_of_an_output_that_is_not_mixed(weights: FittedWeights, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        plan_of("CrC1C", "CrC1C", weights=(weights,))


@pytest.mark.parametrize("values", [(1.0,), (1.0, 0.0, 0.0, 0.0)])
def test_an_impossible_number_of_outputs(values: tuple[float, ...]) -> None:
    with pytest.raises(PlanError, match="1 to 2 kept ones"):
        FittedWeights(1, OUTPUT, values)


def test_outputs_of_a_plan_that_begins_later_or_is_part_of_another() -> None:
    plan = plan_of("CrC1C", "CrC1C", weights=MIXED)
    assert resume_at(plan, 1).weights == ()  # its first step computes, so that others come before step 3
    late = plan_of("CCC1", "CCC1", weights=(FittedWeights(3, OUTPUT, (1.0, 0.2, -0.2)),))
    assert resume_at(late, 1).weights == (FittedWeights(2, OUTPUT, (1.0, 0.2, -0.2)),)
    assert resume_at(late, 2).weights == ()
    whole = within(plan, 2, tuple(range(9, 0, -1)))
    assert whole.weights == tuple(replace(each, step=each.step + 2) for each in MIXED)
