"""The table of operators, and files that were written when it was shorter."""

import json
from dataclasses import replace

import numpy as np
import pytest
from planner_tables import make_profile, make_sensitivity

from soda_compile.errors import SensitivityError
from soda_compile.planner import AnchorSchedule, Unified, plan
from soda_compile.plans.actions import ACTIONS, PRUNE_RATES, SIDE_RATES, STALE, prune
from soda_compile.plans.operators import OPERATORS
from soda_compile.plans.plan import Plan
from soda_compile.plans.profile import PROFILED, Profile
from soda_compile.plans.resume import resume_at
from soda_compile.plans.sensitivity import Sensitivity

HIGHEST = OPERATORS[-1].name


def without(sensitivity, *operators):
    """The same data as it was measured before these operators existed."""
    mean, variance = (
        {key: table for key, table in tables.items() if key.partition(".")[2] not in operators}
        for tables in (sensitivity.mean, sensitivity.variance)
    )
    return replace(sensitivity, mean=mean, variance=variance)


def test_orders_have_no_gap_and_names_and_symbols_differ():
    assert [operator.order for operator in OPERATORS] == list(range(len(OPERATORS)))
    prunes = [prune(rate, side) for rate in PRUNE_RATES for side in SIDE_RATES]
    symbols = [action.symbol for action in (*ACTIONS, *prunes)]
    assert len(set(symbols)) == len(symbols)
    assert [str(action) for action in STALE] == [operator.name for operator in OPERATORS]


@pytest.mark.parametrize("operator", OPERATORS)
def test_coefficients_are_exact_for_polynomials_of_the_order(operator):
    ages = operator.ages(2, 3)
    assert len(ages) == operator.history
    weights = operator.coefficients([-age for age in ages], 0)
    for degree in range(operator.order + 1):
        values = [(7.0 - age) ** degree for age in ages]
        assert np.dot(weights, values) == pytest.approx(7.0**degree)


@pytest.mark.parametrize("strategy", [AnchorSchedule, Unified])
def test_an_operator_that_was_not_measured_is_not_offered(tmp_path, strategy):
    sensitivity = make_sensitivity(3, steps=9, regions=3, width=4)
    names = [operator.name for operator in OPERATORS[1:]]
    for missing in (names[1:], names[:1], names):
        without(sensitivity, *missing).save(tmp_path / "old.safetensors")
        old = Sensitivity.load(tmp_path / "old.safetensors")
        made = plan(old, speedup=1.8, strategy=strategy(operator="auto"))
        used = {str(action) for row in made.actions for action in row}
        assert not used & set(missing)
        assert used - {"compute"}
        with pytest.raises(SensitivityError, match=f"no table for metric 'residual' and operator '{missing[0]}'"):
            plan(old, speedup=1.8, strategy=strategy(operator=missing[0]))


def test_a_column_that_a_profile_lacks_is_not_measured(tmp_path):
    made = make_profile(make_sensitivity(0, regions=3))
    made.save(tmp_path / "p.json")
    data = json.loads((tmp_path / "p.json").read_text())
    column = PROFILED.index(STALE[-1])
    del data["actions"][column]
    for entry in data["regions"].values():
        del entry["cost_us"][column]
    (tmp_path / "p.json").write_text(json.dumps(data))
    read = Profile.load(tmp_path / "p.json")
    assert np.isnan(read.column(STALE[-1])).all()
    for action in set(PROFILED) - {STALE[-1]}:
        assert np.array_equal(read.column(action), made.column(action), equal_nan=True)


@pytest.mark.parametrize("computed", range(1, len(OPERATORS) + 1))
def test_a_plan_from_a_later_step_on_has_the_highest_order_that_is_left(computed):
    highest = STALE[-1]
    row = [*("C" * len(OPERATORS)), *("C" * computed), highest.symbol]
    legend = {action.symbol: action for action in ACTIONS}
    made = Plan("", ("a",), (tuple(legend[symbol] for symbol in row),))
    assert resume_at(made, len(OPERATORS)).actions[0][-1] == STALE[computed - 1]


@pytest.mark.parametrize("strategy", [AnchorSchedule(HIGHEST), Unified(operator=HIGHEST, inherited_error=0.0)])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_no_operator_is_planned_before_it_has_its_history(strategy, width):
    """A plan refuses actions that read more values than were computed before."""
    used = set()
    for seed in range(8):
        sensitivity = make_sensitivity(seed, steps=14, regions=2, width=width)
        made = plan(sensitivity, speedup=1.2, strategy=strategy)
        used |= {action for row in made.actions for action in row}
    assert STALE[-1] in used
