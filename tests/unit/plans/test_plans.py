import copy
import math
import pickle

import numpy as np
import pytest
from random_plans import random_plan

from soda_compile.errors import PlanError
from soda_compile.plans.actions import COMPUTE, FORECAST1, FORECAST2, REUSE, Action
from soda_compile.plans.plan import Plan, compute_all_plan

SYMBOLS = {"C": COMPUTE, "r": REUSE, "1": FORECAST1, "2": FORECAST2}


def make_plan(*rows, regions=None, **fields):
    regions = tuple(f"blocks.{index}.attn" for index in range(len(rows))) if regions is None else regions
    return Plan("abc", regions, tuple(tuple(SYMBOLS[symbol] for symbol in row) for row in rows), **fields)


def test_reads_like_a_table():
    plan = make_plan("CrC1", "CCC2"[:3] + "r")
    assert plan.steps == 4
    assert plan.anchors == (0, 2)
    assert plan.action(0, 3) == FORECAST1
    assert plan.action(1, 3) == REUSE
    assert plan.rows == ("CrC1", "CCCr")


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        ((), {}, "needs a region and a step"),
        (("",), {}, "needs a region and a step"),
        (("Cr", "CrC"), {}, r"'blocks.1.attn' has 3 steps but 'blocks.0.attn' has 2"),
        (("Cr", ""), {}, r"'blocks.1.attn' has 0 steps"),
        (("Cr", "Cr"), {"regions": ("a", "a")}, "'a' appears more than once"),
        (("Cr", "Cr"), {"regions": ("a",)}, "1 regions but 2 rows"),
        (("rC",), {}, r"'blocks.0.attn', step 0: reuse, .* must compute"),
        (("1C",), {}, r"'blocks.0.attn', step 0: forecast1"),
        (("Cr", "C1"), {}, r"'blocks.1.attn', step 1: forecast1 needs 2 earlier computed steps but has 1; use"),
        (("Crr1",), {}, r"step 3: forecast1 needs 2 .* has 1"),
        (("CrC2",), {}, r"step 3: forecast2 needs 3 .* has 2"),
        (("CC2C",), {}, r"step 2: forecast2 needs 3 .* has 2"),
        (("Cr",), {"timesteps": (1.0,)}, "1 timesteps for 2 steps"),
        (("Cr",), {"timesteps": (1.0, math.nan)}, "number nan"),
        (("Cr",), {"guidance": math.inf}, "number inf"),
        (("Cr",), {"method": {"x": math.nan}}, "number nan"),
        (("Cr",), {"calls_per_step": 0}, "calls_per_step is 0"),
    ],
)
def test_refuses_an_invalid_plan(rows, fields, message):
    with pytest.raises(PlanError, match=message):
        make_plan(*rows, **fields)


def test_accepts_forecasts_as_soon_as_there_is_history():
    assert make_plan("CC1", "CrC"[:2] + "C").steps == 3
    assert make_plan("CrCC2").action(0, 4) == FORECAST2


@pytest.mark.parametrize(
    ("kind", "order"), [("skip", 0), ("forecast", 0), ("forecast", 4), ("reuse", 1), ("compute", True)]
)
def test_refuses_an_unknown_action(kind, order):
    with pytest.raises(PlanError, match=r"is not known|has order"):
        Action(kind, order)


def test_equal_plans_are_one_key():
    one, other = make_plan("CrC1", guidance=4, method={"b": 1, "a": "x"}), make_plan("CrC1", guidance=4.0)
    same = make_plan("CrC1", guidance=4.0, method=(("a", "x"), ("b", 1)))
    assert one == same
    assert hash(one) == hash(same)
    assert one.digest == same.digest
    assert len(one.digest) == 16
    assert one != other
    assert one != "CrC1"
    assert len({one, same, other, make_plan("CrCr", guidance=4.0)}) == 3
    assert dict(one.method) == {"a": "x", "b": 1}


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda plan: pickle.loads(pickle.dumps(plan))])
def test_can_be_copied_and_pickled(duplicate):
    plan = make_plan("CrC1", timesteps=(4, 3, 2, 1), method={"a": 1})
    assert duplicate(plan) == plan


def test_compute_all():
    plan = compute_all_plan(["a", "b"], 3, fingerprint="f")
    assert plan.rows == ("CCC", "CCC")
    assert (plan.anchors, plan.fingerprint, plan.flop_ratio) == ((0, 1, 2), "f", 1.0)
    with pytest.raises(PlanError, match="needs a region and a step"):
        compute_all_plan([], 3)
    with pytest.raises(PlanError, match="needs a region and a step"):
        compute_all_plan(["a"], 0)


def test_random_plans_are_valid_and_use_everything():
    plans = [random_plan(seed, ["a", "b", "c"], steps) for seed in range(100) for steps in (1, 2, 9)]
    assert {symbol for plan in plans for row in plan.rows for symbol in row} == set(SYMBOLS)
    assert len({plan for plan in plans if plan.steps == 9}) == 100
    assert random_plan(7, ["a"], 20) == random_plan(np.random.default_rng(7), ["a"], 20)
    assert random_plan(0, ["a"], 5, compute=1.0).rows == ("CCCCC",)
