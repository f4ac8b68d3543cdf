"""Profiles: their files, what they refuse, and plans for measured time."""

import json
from dataclasses import replace

import numpy as np
import pytest
from planner_tables import make_profile, make_sensitivity

from soda_compile.errors import OptionError, PlanError, ProfileError
from soda_compile.planner import AnchorSchedule, Unified, fixed_interval_plan, plan, slot_memory_bytes
from soda_compile.planner.costs import Costs
from soda_compile.plans.actions import COMPUTE, PRUNE_RATES, prune
from soda_compile.plans.profile import PROFILED, Profile
from soda_compile.plans.pruning import Pruning


@pytest.fixture(scope="module")
def sensitivity():
    return make_sensitivity(0, steps=14, regions=3, width=6, scores=["drift", "random"], calls_per_step=2)


def predicted_us(profile, made):
    """One stream, added up step by step."""
    total = made.steps * profile.base_us
    for region, row in enumerate(made.actions):
        total += sum(profile.cost_us[region, PROFILED.index(action)] for action in row)
    return total


def test_a_file_gives_back_what_was_saved(sensitivity, tmp_path):
    made = make_profile(sensitivity, measured_rates=PRUNE_RATES[:2])
    made.save(tmp_path / "p.json")
    read = Profile.load(tmp_path / "p.json")
    assert np.array_equal(read.cost_us, made.cost_us, equal_nan=True)
    assert np.array_equal(read.memory_bytes, made.memory_bytes)
    for name in ("fingerprint", "regions", "device", "key", "full_us", "base_us", "score", "spread", "versions"):
        assert getattr(read, name) == getattr(made, name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(schema="soda-profile/9"), r"schema .*soda-profile/1"),
        (lambda data: data.update(more=1), "more: Extra"),
        (lambda data: data.pop("base_us"), "base_us: Field required"),
        (lambda data: data["actions"].__setitem__(2, "guess"), "other actions"),
        (lambda data: data["regions"]["blocks.0.attn"]["cost_us"].pop(), "must have 12 costs"),
        (lambda data: data["regions"]["blocks.0.attn"]["cost_us"].__setitem__(0, None), "known for compute and reuse"),
        (lambda data: data["regions"]["blocks.0.attn"]["cost_us"].__setitem__(2, -1.0), "negative"),
        (lambda data: data.update(full_us=0.0), "must be positive"),
    ],
)
def test_a_damaged_file_is_named_with_the_reason(sensitivity, tmp_path, change, message):
    path = tmp_path / "p.json"
    make_profile(sensitivity).save(path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ProfileError, match=rf"p\.json: .*{message}"):
        Profile.load(path)


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "p.json").write_text("{")
    for name, reason in (("p.json", "damaged JSON"), ("absent.json", "cannot read the profile")):
        with pytest.raises(ProfileError, match=rf"{name}: {reason}"):
            Profile.load(tmp_path / name)


def test_arrays_must_fit(sensitivity):
    with pytest.raises(ProfileError, match=r"cost_us is float64 \(3, 4\); expected float64 \(3, 12\)"):
        make_profile(sensitivity, cost_us=np.zeros((3, 4)))


@pytest.mark.parametrize("options", [{}, {"strategy": Unified()}, {"strategy": Unified(pruning=Pruning("drift"))}])
def test_speedup_is_that_of_measured_time(sensitivity, options):
    profile = make_profile(sensitivity)
    for speedup in (1.3, 2.0, 2.6):
        made = plan(sensitivity, speedup=speedup, profile=profile, **options)
        time_us = predicted_us(profile, made)
        assert time_us * speedup <= made.steps * profile.full_us * (1 + 1e-9)
        method = dict(made.method)
        assert method["latency_predicted_ms"] == pytest.approx(2 * time_us / 1000)
        assert method["speedup_predicted"] == pytest.approx(made.steps * profile.full_us / time_us)
        assert method["device"] == "a device"
        same = plan(
            sensitivity, latency_ms=2 * made.steps * profile.full_us / speedup / 1000, profile=profile, **options
        )
        assert same.actions == made.actions


def test_time_and_flops_ask_for_different_plans(sensitivity):
    """Where one region is slow for its FLOPs, the others are computed more often: they cost next to nothing."""
    cost_us = make_profile(sensitivity).cost_us
    cost_us[0] *= 20
    slow = make_profile(sensitivity, cost_us=cost_us, full_us=30.0 + cost_us[:, 0].sum())
    by_time = plan(sensitivity, speedup=2.0, profile=slow, strategy=Unified())
    by_flops = plan(sensitivity, speedup=2.0, strategy=Unified())
    for region in (1, 2):
        assert by_time.actions[region].count(COMPUTE) > by_flops.actions[region].count(COMPUTE)
    assert predicted_us(slow, by_time) * 2 <= by_time.steps * slow.full_us
    assert by_time.flop_ratio > 0.5


def test_anchors_alone_take_as_many_as_the_time_allows(sensitivity):
    profile = make_profile(sensitivity)
    times = {count: predicted_us(profile, plan(sensitivity, anchors=count)) for count in range(3, 14)}
    for make in (plan, fixed_interval_plan):
        made = make(sensitivity, speedup=2.0, profile=profile)
        assert len(made.anchors) == max(count for count, time in times.items() if time * 2 <= 14 * profile.full_us)
    with pytest.raises(PlanError, match=r"speedup of 50 by measured time is out of reach: the most is"):
        plan(sensitivity, speedup=50, profile=profile)
    with pytest.raises(PlanError, match=r"latency_ms=0\.5 is out of reach: the least is 2\.\d+ ms, with 3 of 14"):
        plan(sensitivity, latency_ms=0.5, profile=profile)


def test_everything_computed_keeps_nothing(sensitivity):
    """Keeping values takes time; a plan that computes everything does not pay it."""
    made = make_profile(sensitivity)
    kept = replace(made, full_us=made.full_us * 0.97)
    for options in ({}, {"strategy": Unified()}):
        assert len(plan(sensitivity, speedup=1.0, profile=kept, **options).anchors) == 14


def test_pruning_that_is_slow_on_the_device_is_left_out(sensitivity):
    profile = make_profile(sensitivity)
    options = {"speedup": 1.8, "strategy": Unified(pruning=Pruning("drift"), inherited_error=0.0)}
    assert plan(sensitivity, profile=profile, **options).pruning is not None
    cost_us = profile.cost_us.copy()
    cost_us[:, 4:] = cost_us[:, :1] * 1.01
    slow = replace(profile, cost_us=cost_us)
    assert plan(sensitivity, profile=slow, **options).pruning is None
    assert plan(sensitivity, **options).pruning is not None


def test_what_was_not_measured_follows_from_flops(sensitivity):
    profile = make_profile(sensitivity, measured_rates=(0.5,))
    costs = Costs.read(sensitivity, profile)
    assert np.array_equal(costs.column(prune(0.5)), profile.column(prune(0.5)))
    left = 1 - sensitivity.region_prune_flops[:, 1] / sensitivity.region_flops
    assert costs.column(prune(0.25)) == pytest.approx(profile.column(COMPUTE) * left)
    assert costs.full == profile.full_us


def test_memory_is_kept_by_lower_orders(sensitivity):
    profile = make_profile(sensitivity)
    needs = []
    for order, operator in enumerate(("reuse", "forecast1", "forecast2")):
        free = plan(sensitivity, anchors=6, profile=profile, strategy=AnchorSchedule(operator=operator))
        needs.append(slot_memory_bytes(profile, free.actions))
        assert needs[-1] == 600 * (order + 1)
        fit = plan(
            sensitivity,
            anchors=6,
            memory_bytes=needs[-1],
            profile=profile,
            strategy=AnchorSchedule(operator="forecast2"),
        )
        assert fit.actions == free.actions
    with pytest.raises(PlanError, match="memory_bytes is 599, but even a plan without forecasts keeps 600 bytes"):
        plan(sensitivity, anchors=6, memory_bytes=599, profile=profile)
    made = plan(sensitivity, speedup=2.0, memory_bytes=900, profile=profile, strategy=Unified(pruning=Pruning("drift")))
    assert slot_memory_bytes(profile, made.actions) <= 900


def test_one_value_for_all_regions_where_memory_asks_for_it(sensitivity):
    """Forecasts of what all regions add come before plain reuse of each."""
    profile = make_profile(sensitivity, stack_bytes=50.0)
    wanted = ((1200, "region", "1"), (1199, "stack", "1"), (100, "stack", "1"), (99, "stack", "r"), (50, "stack", "r"))
    for most, slots, symbol in wanted:
        made = plan(sensitivity, anchors=6, memory_bytes=most, profile=profile)
        assert (made.slots, symbol in made.rows[0]) == (slots, True)
        assert slot_memory_bytes(profile, made.actions, made.slots) <= most
        assert (made.watched is None) == (slots == "stack")
    with pytest.raises(PlanError, match="memory_bytes is 49, but even a plan without forecasts keeps 50 bytes"):
        plan(sensitivity, anchors=6, memory_bytes=49, profile=profile)
    asked = plan(sensitivity, anchors=6, strategy=AnchorSchedule(slots="stack"))
    assert (asked.slots, asked.actions) == ("stack", plan(sensitivity, anchors=6).actions)
    with pytest.raises(PlanError, match='slots is "stack", but the profile has no size for it'):
        slot_memory_bytes(make_profile(sensitivity), asked.actions, "stack")
    with pytest.raises(OptionError, match="operator='auto' chooses for each"):
        plan(sensitivity, anchors=6, strategy=AnchorSchedule(operator="auto", slots="stack"))
    with pytest.raises(OptionError, match="slots 'all' is not known; use one of region, stack"):
        plan(sensitivity, anchors=6, strategy=AnchorSchedule(slots="all"))


def test_what_is_kept_is_rounded_before_less_of_it_is_kept(sensitivity):
    """Order before what is rounded to; what all regions add is rounded to another dtype, as its rows have outliers."""
    sizes = make_profile(sensitivity).memory_bytes
    rounded = {name: sizes / factor for name, factor in (("bfloat16", 2), ("int8", 4), ("float8", 4))}
    stack = {"bfloat16": 25.0, "int8": 13.0, "float8": 13.0}
    profile = make_profile(sensitivity, stack_bytes=50.0, rounded_bytes=rounded, rounded_stack_bytes=stack)
    wanted = {
        1200: ("region", None, "1"),
        1199: ("region", "bfloat16", "1"),
        599: ("region", "int8", "1"),
        299: ("stack", None, "1"),
        99: ("stack", "bfloat16", "1"),
        49: ("stack", "float8", "1"),
        25: ("stack", "bfloat16", "r"),
        24: ("stack", "float8", "r"),
    }
    for most, (slots, slot_dtype, symbol) in wanted.items():
        made = plan(sensitivity, anchors=6, memory_bytes=most, profile=profile)
        assert (made.slots, made.slot_dtype, symbol in made.rows[0]) == (slots, slot_dtype, True)
        assert slot_memory_bytes(profile, made.actions, slots, slot_dtype) <= most
        assert (made.watched is None) == (slots == "stack" or slot_dtype is not None)
    with pytest.raises(PlanError, match="memory_bytes is 12, but even a plan without forecasts keeps 13 bytes"):
        plan(sensitivity, anchors=6, memory_bytes=12, profile=profile)
    named = AnchorSchedule(slot_dtype="float8")
    assert plan(sensitivity, anchors=6, strategy=named).slot_dtype == "float8"
    assert plan(sensitivity, anchors=6, memory_bytes=600, profile=profile, strategy=named).slot_dtype == "float8"
    unknown = AnchorSchedule(slot_dtype="int4")
    with pytest.raises(OptionError, match="slot_dtype 'int4' is not known; use None or one of bfloat16, int8, float8"):
        plan(sensitivity, anchors=6, strategy=unknown)
    with pytest.raises(PlanError, match="the profile has no sizes for slot_dtype='int8'"):
        slot_memory_bytes(make_profile(sensitivity), made.actions, "region", "int8")


def test_rounded_sizes_are_in_the_file(sensitivity, tmp_path):
    sizes = make_profile(sensitivity).memory_bytes / 4
    profile = make_profile(sensitivity, rounded_bytes={"int8": sizes}, rounded_stack_bytes={"int8": 3.0})
    profile.save(tmp_path / "profile.json")
    loaded = Profile.load(tmp_path / "profile.json")
    assert np.array_equal(loaded.rounded_bytes["int8"], sizes)
    assert loaded.rounded_stack_bytes == {"int8": 3.0}


def test_the_size_of_the_one_value_is_in_the_file(sensitivity, tmp_path):
    for size in (50.0, None):
        make_profile(sensitivity, stack_bytes=size).save(tmp_path / "profile.json")
        assert Profile.load(tmp_path / "profile.json").stack_bytes == size


def test_a_profile_of_something_else_is_refused(sensitivity):
    with pytest.raises(PlanError, match="profile is for another model"):
        plan(sensitivity, anchors=3, profile=replace(make_profile(sensitivity), fingerprint="other"))
    with pytest.raises(OptionError, match="measured pruning by 'drift' but the plan is to prune by 'random'"):
        plan(sensitivity, speedup=2.0, profile=make_profile(sensitivity), strategy=Unified(pruning=Pruning("random")))


def test_prints_its_device_and_times_not_its_arrays(sensitivity):
    assert str(make_profile(sensitivity, full_us=1234.5, spread=0.021)) == (
        "<Profile of 3 regions on a device: a full call takes 1.23 ms (spread 2.1%), all reused 0.03 ms, "
        "pruning by drift>"
    )
    assert repr(make_profile(sensitivity, score=None)).endswith("pruning not measured>")
