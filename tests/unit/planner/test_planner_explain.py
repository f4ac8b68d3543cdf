"""What a plan says about itself."""

from dataclasses import replace

import numpy as np
import pytest
from planner_tables import make_sensitivity

from soda_compile.errors import PlanError
from soda_compile.planner import Unified, explain, plan
from soda_compile.plans.actions import COMPUTE, FORECAST1, PRUNE_RATES, REUSE, prune
from soda_compile.plans.plan import Plan
from soda_compile.plans.profile import PROFILED, Profile
from soda_compile.plans.pruning import Pruning


def profile_of(sensitivity, compute_us=77.0, half_us=41.0, **fields):
    """Computing takes 77 us, pruning half the tokens 41, other rates are not measured."""
    regions = sensitivity.info.regions
    cost_us = np.full((len(regions), len(PROFILED)), np.nan)
    for action, value in ((COMPUTE, compute_us), (REUSE, 0.0), (FORECAST1, 3.0), (prune(0.5), half_us)):
        cost_us[:, PROFILED.index(action)] = value
    memory = np.full(len(regions), 1000.0)
    full_us, base_us = 20.0 + len(regions) * compute_us, 20.0
    known = {"full_us": full_us, "base_us": base_us, "cost_us": cost_us, "memory_bytes": memory, "score": "drift"}
    return Profile(sensitivity.info.fingerprint, regions, "a device", "key", **known | fields)


def hand_made(sensitivity):
    """Region 0 prunes half its tokens at step 2, region 1 reuses."""
    rows = ((COMPUTE, COMPUTE, prune(0.5), FORECAST1), (COMPUTE, REUSE, COMPUTE, REUSE))
    method = {"objective": "residual", "operator": "auto"}
    info = sensitivity.info
    return Plan(info.fingerprint, info.regions, rows, pruning=Pruning("drift"), method=method, predicted_error=0.25)


def test_it_says_what_pruning_costs_and_saves():
    sensitivity = make_sensitivity(0, steps=4, regions=2, width=3, scores=["drift"])
    sensitivity.mean["residual.prune.drift"][2, 0, 0, PRUNE_RATES.index(0.5)] = 0.002
    sensitivity.mean["residual.reuse"][2, 0, 0] = 0.02
    sensitivity.mean["residual.forecast1"][2, 0, 0, 0] = 0.011
    lines = explain(hand_made(sensitivity), sensitivity, profile_of(sensitivity)).splitlines()
    assert lines[0] == (
        "blocks.0.attn: compute 2, pruned 1, forecast1 1; pruned at 1 steps (rates 0.5): 41 us against 77 us, error "
        ".002 against .011"
    )
    assert lines[1].startswith("blocks.1.attn: compute 2, reuse 2; not pruned: ")
    # 4 steps of 20 us, 4 computed regions, one pruned and one forecast: 80 + 308 + 41 + 3 of 4 * 174 us
    assert lines[2] == "predicted time: 0.4 ms of 0.7 ms, 1.61 times as fast"
    assert lines[3] == "predicted error: .25"
    without = explain(hand_made(sensitivity), sensitivity).splitlines()
    assert "FLOP against" in without[0]
    assert without[2].startswith("predicted FLOPs: 0.")


def test_it_says_why_a_region_is_not_pruned():
    sensitivity = make_sensitivity(0, steps=4, regions=2, width=3, scores=["drift"])
    made = hand_made(sensitivity)
    cases = {
        "its tokens cannot be picked apart": (replace(sensitivity, region_prune_flops=np.zeros((2, 7))), None),
        "no rate is faster, 90 us against 77 us": (sensitivity, slow(sensitivity)),
        "what that would cost saves more error elsewhere": (sensitivity, None),
        "no faster rate is better, error": (worse(sensitivity), None),
    }
    for reason, (data, profile) in cases.items():
        assert f"not pruned: {reason}" in explain(made, data, profile).splitlines()[1]


def slow(sensitivity):
    made = profile_of(sensitivity)
    made.cost_us[:, 4:] = 90.0
    return made


def worse(sensitivity):
    mean = dict(sensitivity.mean)
    mean["residual.prune.drift"] = mean["residual.prune.drift"] + np.float32(2.0)
    return replace(sensitivity, mean=mean)


def test_equal_regions_share_a_line_and_the_bound_is_told():
    sensitivity = make_sensitivity(0, steps=10, regions=3, width=6, scores=["drift"])
    made = plan(sensitivity, speedup=1.8, strategy=Unified(pruning=Pruning("drift")))
    text = explain(made, sensitivity)
    assert "no plan with these anchors has less than" in text
    alone = plan(sensitivity, anchors=4)
    lines = explain(alone, sensitivity).splitlines()
    assert lines[0].startswith("blocks.0-2.attn (x3): compute 4, ")
    assert len(lines) == 3


def test_another_model_is_refused():
    sensitivity = make_sensitivity(0, steps=4, regions=2, width=3, scores=["drift"])
    with pytest.raises(PlanError, match="was not made from this sensitivity"):
        explain(hand_made(sensitivity), make_sensitivity(0, steps=5, regions=2))
    with pytest.raises(PlanError, match="profile is for another model"):
        explain(hand_made(sensitivity), sensitivity, replace(profile_of(sensitivity), fingerprint="other"))
