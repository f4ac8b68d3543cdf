"""The paper's unified adaptive strategy (SODA, arXiv 2603.07057, UAS), by hand and by its rule."""

from dataclasses import replace

import numpy as np
import pytest
from planner_tables import make_sensitivity

from soda_compile.errors import OptionError, PlanError, SensitivityError
from soda_compile.planner import PaperSchedule, PaperUnified, plan
from soda_compile.plans.actions import COMPUTE, PRUNE_RATES, REUSE, prune
from soda_compile.plans.pruning import Pruning

BY_MEAN = Pruning("feature_mean")


def by_hand():
    """One region over four steps, anchor at step 0: Ec is .1, .2, .3, Ep is the rate's share of it."""
    sensitivity = make_sensitivity(0, steps=4, regions=1, width=3, scores=["feature_mean"])
    sensitivity.mean["cosine.reuse"][[1, 2, 3], 0, [0, 1, 2]] = 0.1, 0.2, 0.3
    reuse = sensitivity.mean["cosine.reuse"][..., None]
    sensitivity.mean["cosine.prune.feature_mean"][:] = reuse * np.array(PRUNE_RATES, dtype=np.float32)
    removed = 8.0 * np.array(PRUNE_RATES)[None]
    return replace(sensitivity, region_flops=np.array([8.0]), total_flops=8.0, region_prune_flops=removed)


@pytest.mark.parametrize(
    ("slope", "rates"),
    # alpha = beta - Ec: from beta = .8625 on it is .76, .66, .56, or 6, 5, 5 eighths, and 16 of 32 FLOPs are left
    [(-1.0, (6, 5, 5)), (1.0, (5, 5, 6)), (0.0, (6, 6, 6))],
)
def test_by_hand(slope, rates):
    made = plan(by_hand(), anchors=1, speedup=2.0, strategy=PaperUnified(BY_MEAN, slope))
    assert made.actions == ((COMPUTE, *(prune(rate / 8) for rate in rates)),)
    error = sum(ec * rate / 8 for ec, rate in zip((0.1, 0.2, 0.3), rates, strict=True))
    assert made.predicted_error == pytest.approx(error)
    assert made.flop_ratio == pytest.approx((8 + 24 - sum(rates)) / 32)
    assert made.pruning == BY_MEAN
    method = dict(made.method)
    assert (method["planner"], method["lambda"]) == ("paper", slope)


def test_it_reuses_where_pruning_is_no_better():
    sensitivity = by_hand()
    sensitivity.mean["cosine.prune.feature_mean"][2] = 0.2
    made = plan(sensitivity, anchors=1, speedup=2.0, strategy=PaperUnified(BY_MEAN))
    # Step 2 is free now, and beta falls: 8 (beta - .1) and 8 (beta - .3) round to 5 and 3 from beta = .675 on.
    assert made.actions == ((COMPUTE, prune(5 / 8), REUSE, prune(3 / 8)),)


@pytest.mark.parametrize(("speedup", "expected"), [(1.0, COMPUTE), (4.0, REUSE)])
def test_the_ends_of_the_grid_compute_and_reuse(speedup, expected):
    made = plan(by_hand(), anchors=1, speedup=speedup, strategy=PaperUnified(BY_MEAN))
    assert made.actions == ((COMPUTE, expected, expected, expected),)


@pytest.mark.parametrize("seed", range(3))
def test_every_action_follows_the_rule(seed):
    sensitivity = make_sensitivity(seed, steps=12, regions=4, width=6, scores=["feature_mean"])
    schedule = plan(sensitivity, anchors=4, strategy=PaperSchedule())
    for speedup in (1.5, 2.0, 2.4):
        made = plan(sensitivity, anchors=4, speedup=speedup, strategy=PaperUnified(BY_MEAN, -0.4))
        assert set(schedule.anchors) <= set(made.anchors)
        assert made.flop_ratio * speedup <= 1 + 1e-9
        beta = dict(made.method)["beta"]
        kinds = set()
        for region, row in zip(made.regions, made.actions, strict=True):
            for step, action in enumerate(row):
                if step in schedule.anchors:
                    continue
                age = step - max(anchor for anchor in schedule.anchors if anchor < step)
                cache_error = sensitivity.error("cosine", "reuse", step, region, age)
                eighths = round(8 * (-0.4 * cache_error + beta))
                expected = COMPUTE if eighths <= 0 else REUSE
                if 0 < eighths < 8:
                    error = sensitivity.error("cosine", "prune.feature_mean", step, region, age, rate=eighths / 8)
                    expected = prune(eighths / 8) if error < cache_error else REUSE
                assert action == expected
                kinds.add(action.kind)
        assert "prune" in kinds


def test_the_budget_is_used():
    """More than nine tenths of what the anchors leave over is spent, where every module can be pruned."""
    sensitivity = make_sensitivity(0, steps=40, regions=20, width=9, scores=["feature_mean"])
    fewest = plan(sensitivity, anchors=10, strategy=PaperSchedule()).flop_ratio
    for speedup in (1.5, 2.0, 2.5):
        made = plan(sensitivity, anchors=10, speedup=speedup, strategy=PaperUnified(BY_MEAN))
        assert 0.9 / speedup + 0.1 * fewest <= made.flop_ratio <= 1 / speedup


def test_what_cannot_be_pruned_is_reused():
    sensitivity = by_hand()
    stuck = replace(sensitivity, region_prune_flops=np.zeros((1, 7)))
    made = plan(stuck, anchors=1, speedup=2.0, strategy=PaperUnified(BY_MEAN))
    # The budget has room for one more step to compute: beta falls until alpha rounds to 0 where Ec is largest.
    assert made.actions == ((COMPUTE, REUSE, REUSE, COMPUTE),)
    assert made.pruning is None


def test_bad_options():
    sensitivity = by_hand()
    for options in ({"speedup": 2.0}, {"anchors": 1, "max_error": 1.0}):
        with pytest.raises(OptionError, match="needs anchors and one of speedup and latency_ms"):
            plan(sensitivity, strategy=PaperUnified(BY_MEAN), **options)
    with pytest.raises(OptionError, match="exactly one of speedup"):
        plan(sensitivity, anchors=1, strategy=PaperUnified(BY_MEAN))
    with pytest.raises(TypeError, match="pruning"):
        PaperUnified()
    with pytest.raises(PlanError, match=r"speedup of 5 by FLOPs is out of reach: the most is 4\.000, with 1 of 4"):
        plan(sensitivity, anchors=1, speedup=5.0, strategy=PaperUnified(BY_MEAN))
    with pytest.raises(SensitivityError, match=r"'prune\.drift'"):
        plan(sensitivity, anchors=1, speedup=2.0, strategy=PaperUnified(Pruning("drift")))
