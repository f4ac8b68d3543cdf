"""The watched region of a plan: where it has forecasts to compare, its file, and what is left of it elsewhere."""

import json
from dataclasses import replace

import pytest

from soda_compile.errors import PlanError
from soda_compile.plans.actions import ACTIONS, prune
from soda_compile.plans.plan import Plan
from soda_compile.plans.pruning import Pruning
from soda_compile.plans.resume import resume_at, within
from soda_compile.plans.watched_region import WatchedRegion, forecasts_at_anchors

SYMBOLS = {action.symbol: action for action in (*ACTIONS, prune(0.5))}


def row_of(symbols: str):
    return tuple(SYMBOLS[symbol] for symbol in symbols)


def plan_of(*rows: str, **changes) -> Plan:
    return Plan("", tuple(f"region{number}" for number in range(len(rows))), tuple(map(row_of, rows)), **changes)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ("CrCr", {2: (0,)}),
        ("CrrCrCr", {3: (0,), 5: (3,)}),
        ("CC1C1C1", {3: (1, 0), 5: (3, 1)}),
        ("CCC22C2", {5: (2, 1, 0)}),
        ("CCrC1", {3: (1,)}),
        ("CCCC", {}),  # nothing is stale before an anchor
        ("CrC", {}),  # nothing reads what the anchor computes
        ("CrCCr", {}),  # the next one is read instead
        ("CrC1", {2: (0,)}),
        (f"C{prune(0.5).symbol}rCr", {}),  # what is reused is a mixture
        (f"CC{prune(0.5).symbol}1C1", {4: (1, 0)}),  # a forecast reads computed values alone
        (f"Cr{prune(0.5).symbol}Cr", {}),
    ],
)
def test_forecasts_at_anchors(row: str, found: dict[int, tuple[int, ...]]) -> None:
    actions = row_of(row)
    anchors = [step for step, action in enumerate(actions) if action == SYMBOLS["C"]]
    assert forecasts_at_anchors(actions, anchors) == found


def test_only_anchors_count() -> None:
    assert forecasts_at_anchors(row_of("CrCrCr"), (0, 4)) == {4: (2,)}


def test_the_file_holds_it() -> None:
    plan = plan_of("CrCrCr", "CCCrCr")
    watched = replace(plan, watched=WatchedRegion("region0", {4: 0.5, 2: 0.25}))
    assert watched.watched.errors == ((2, 0.25), (4, 0.5))
    assert json.loads(watched.to_json())["watched"] == {"region": "region0", "errors": {"2": 0.25, "4": 0.5}}
    assert Plan.from_json(watched.to_json()).watched == watched.watched
    assert watched != plan
    assert "watched" not in plan.to_json(), "files, and digests, of plans without one stay as they were"
    assert Plan.from_json(plan.to_json()).watched is None


@pytest.mark.parametrize(
    ("watched", "message"),
    [
        ({"region": "other", "errors": {"2": 0.5}}, "watched region 'other' is none of the plan's regions"),
        ({"region": "region0", "errors": {"3": 0.5}}, "'region0' at step 3, where the plan has no forecast to compare"),
        ({"region": "region0", "errors": {"0": 0.5}}, "at step 0"),
        ({"region": "region0", "errors": {"2": -0.5}}, "step 2: the expected error is -0.5"),
        ({"region": "region0", "errors": {"two": 0.5}}, "an error for step 'two'; steps are numbers"),
        ({"region": "region0", "errors": {"2": "0.5"}}, "watched.errors.2: Input should be a valid number"),
        ({"region": "region0"}, "watched.errors: Field required"),
        ({"region": "region0", "errors": {}, "more": 1}, "watched.more: Extra inputs"),
    ],
)
def test_what_cannot_be_is_named(watched: dict, message: str) -> None:
    data = json.loads(plan_of("CrCrCr").to_json())
    with pytest.raises(PlanError, match=message.replace("(", r"\(")):
        Plan.from_json(json.dumps(data | {"watched": watched}))


def test_a_plan_that_begins_later_expects_what_is_forecast_from_the_same_values() -> None:
    errors = {2: 0.2, 4: 0.4, 6: 0.6, 8: 0.8}
    plan = plan_of("CrCrC1C1C1", watched=WatchedRegion("region0", errors))
    assert resume_at(plan, 0).watched == plan.watched
    assert resume_at(plan, 2).watched == WatchedRegion("region0", {2: 0.4, 4: 0.6, 6: 0.8})
    assert resume_at(plan, 3).watched == WatchedRegion("region0", {5: 0.8}), "6 would read step 3 and be another"
    assert resume_at(plan, 8).watched is None


def test_a_plan_of_a_part_expects_the_same_in_the_whole() -> None:
    plan = plan_of("CrCr", timesteps=(4.0, 3.0, 2.0, 1.0), watched=WatchedRegion("region0", {2: 0.2}))
    assert within(plan, 1, (5.0, 4.0, 3.0, 2.0, 1.0, 0.0)).watched == WatchedRegion("region0", {3: 0.2})


def test_pruned_plans_are_valid_with_one() -> None:
    pruned = f"C{prune(0.5).symbol}Cr"
    assert plan_of("CrCr", pruned, pruning=Pruning("random"), watched=WatchedRegion("region0", {2: 0.1})).watched
