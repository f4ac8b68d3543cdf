"""The prune action and how a plan says which tokens it computes."""

import pytest

from soda_compile.errors import PlanError
from soda_compile.plans.actions import ACTIONS, COMPUTE, PRUNE_RATES, REUSE, SIDE_RATES, Action, prune
from soda_compile.plans.plan import Plan
from soda_compile.plans.pruning import Pruning


def test_every_action_has_its_own_symbol() -> None:
    actions = [*ACTIONS, *(prune(rate, side) for rate in PRUNE_RATES for side in SIDE_RATES)]
    assert len({action.symbol for action in actions}) == len(actions)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: prune(0.3), "rate 0.3"),
        (lambda: prune(0.5, 0.1), "side_rate 0.1"),
        (lambda: Action("reuse", rate=0.5), "reuse has rate 0.5"),
        (lambda: Pruning("norm"), "score 'norm'"),
        (lambda: Pruning(staleness=-1), "staleness is -1"),
        (lambda: Pruning(share="all"), "share is 'all'"),
        (lambda: Pruning(share=0), "share is 0"),
        (lambda: Pruning(groups=0), "groups is 0"),
        (lambda: Plan("", ("a",), ((COMPUTE, prune(0.5)),)), "pass pruning"),
        (lambda: Plan("", ("a",), ((prune(0.5), COMPUTE),), pruning=Pruning()), "step 0"),
    ],
)
def test_wrong_values_are_named(make, message) -> None:
    with pytest.raises(PlanError, match=message):
        make()


def test_round_trip_and_grid() -> None:
    row = (COMPUTE, prune(0.5), prune(0.25, 0.75), REUSE)
    plan = Plan("", ("a",), (row,), pruning=Pruning("drift", 0.25, 2, 2))
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.actions == plan.actions
    assert again.pruning == plan.pruning
    assert "prune 0.5" in plan.grid()
    assert plan.rows == ("Cdxr",)
