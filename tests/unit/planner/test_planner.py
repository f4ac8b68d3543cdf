import math
from dataclasses import replace

import numpy as np
import pytest
from planner_tables import every_schedule, make_profile, make_sensitivity, plain_cost

from soda_compile.errors import OptionError, PlanError, SensitivityError
from soda_compile.planner import (
    OPERATOR_CHOICES,
    AnchorSchedule,
    Goal,
    PaperSchedule,
    fixed_interval_plan,
    flop_ratio,
    plan,
)
from soda_compile.planner.make import plans_at, slot_memory_bytes
from soda_compile.plans.actions import COMPUTE, FORECAST1, FORECAST2, REUSE
from soda_compile.plans.plan import Plan


@pytest.mark.parametrize("operator", OPERATOR_CHOICES)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(
    ("steps", "width", "holes"),
    [
        (1, 1, 0.0),
        (2, 1, 0.0),
        (5, 2, 0.0),
        (7, 7, 0.0),
        (8, 3, 0.0),
        (8, 8, 0.0),
        (8, 8, 0.1),
        (8, 4, 0.05),
        (7, 2, 0.3),
    ],
)
def test_schedule_is_the_best_of_all(operator, weighted, steps, width, holes):
    for seed in range(4):
        sensitivity = make_sensitivity(seed, steps, regions=2, width=width, holes=holes)
        for count in range(1, steps + 1):
            costs = {
                anchors: plain_cost(sensitivity, anchors, operator, weighted=weighted)
                for anchors in every_schedule(steps, count)
            }
            best = min(costs.values())
            if math.isinf(best):
                with pytest.raises(PlanError, match="anchors"):
                    plan(sensitivity, anchors=count, strategy=AnchorSchedule(operator=operator, step_weights=weighted))
                continue
            made = plan(sensitivity, anchors=count, strategy=AnchorSchedule(operator=operator, step_weights=weighted))
            assert len(made.anchors) == count
            assert made.predicted_error == pytest.approx(best)
            assert costs[made.anchors] == pytest.approx(best)


@pytest.mark.parametrize("operator", OPERATOR_CHOICES)
def test_the_worst_of_samples_are_mean_and_deviation(operator):
    sensitivity = make_sensitivity(5, steps=8, regions=3, width=5)
    tables = {
        key: (table + 1.2816 * np.sqrt(sensitivity.variance[key])).astype(np.float32)
        for key, table in sensitivity.mean.items()
    }
    worst = replace(sensitivity, mean=tables)
    for count in (2, 4):
        made = plan(sensitivity, anchors=count, strategy=AnchorSchedule(operator=operator, over_samples="worst"))
        wanted = plan(worst, anchors=count, strategy=AnchorSchedule(operator=operator))
        assert (made.actions, made.predicted_error) == (wanted.actions, pytest.approx(wanted.predicted_error))


@pytest.mark.parametrize("operator", OPERATOR_CHOICES)
@pytest.mark.parametrize("holes", [0.0, 0.1])
def test_actions_have_the_predicted_error(operator, holes):
    """The error read off the plan's actions, region by region, is the one the planner minimised."""
    sensitivity = make_sensitivity(3, steps=9, regions=3, width=6, holes=holes)
    made = plan(sensitivity, anchors=5, strategy=AnchorSchedule(operator=operator, step_weights=True))
    total = 0.0
    for region, row in zip(made.regions, made.actions, strict=True):
        for step, action in enumerate(row):
            if action == COMPUTE:
                continue
            past = [earlier for earlier in range(step) if row[earlier] == COMPUTE][::-1]
            spacing = past[0] - past[1] if action.history > 1 else 1
            error = sensitivity.error("residual", str(action), step, region, step - past[0], spacing)
            total += error * sensitivity.step_weights[step]
    assert total == pytest.approx(made.predicted_error)


def test_auto_mixes_operators_within_a_step():
    sensitivity = make_sensitivity(0, steps=10, regions=6, width=9)
    made = plan(sensitivity, anchors=4, strategy=AnchorSchedule(operator="auto"))
    last = {row[made.steps - 1] if COMPUTE not in row[-1:] else row[made.anchors[-1] - 1] for row in made.actions}
    assert len(last) > 1
    for operator in ("reuse", "forecast1", "forecast2"):
        assert (
            made.predicted_error
            <= plan(sensitivity, anchors=4, strategy=AnchorSchedule(operator=operator)).predicted_error
        )


def test_forecast_falls_back_where_history_is_short():
    sensitivity = make_sensitivity(0, steps=9, regions=1, width=8)
    (row,) = fixed_interval_plan(sensitivity, anchors=3, operator="forecast2").actions
    assert row == (COMPUTE, REUSE, REUSE, COMPUTE, FORECAST1, FORECAST1, COMPUTE, FORECAST2, FORECAST2)
    (row,) = fixed_interval_plan(sensitivity, anchors=3, operator="forecast1").actions
    assert row == (COMPUTE, REUSE, REUSE, COMPUTE, FORECAST1, FORECAST1, COMPUTE, FORECAST1, FORECAST1)


def test_objective_and_step_weights_matter():
    sensitivity = make_sensitivity(5, steps=8, regions=1, width=7)
    for objective in ("residual", "relative", "cosine"):
        made = plan(
            sensitivity, anchors=3, strategy=AnchorSchedule(operator="reuse", objective=objective, step_weights=True)
        )
        expected = min(plain_cost(sensitivity, anchors, "reuse", objective) for anchors in every_schedule(8, 3))
        assert made.predicted_error == pytest.approx(expected)
    heavy = np.ones(8)
    heavy[3] = 1000.0
    assert (
        3
        in plan(replace(sensitivity, step_weights=heavy), anchors=3, strategy=AnchorSchedule(step_weights=True)).anchors
    )


def _smooth(steps=12, width=11):
    """Errors that grow with the age and, for forecasts, with the spacing."""
    sensitivity = make_sensitivity(1, steps, regions=2, width=width)
    age, spacing = np.arange(1.0, width + 1)[:, None], np.arange(1.0, width + 1)
    shapes = {
        "reuse": age[:, 0],
        "forecast1": age * (age + spacing) / 100,
        "forecast2": age * (age + spacing) ** 2 / 5000,
        "forecast3": age * (age + spacing) ** 3 / 100000,
    }
    scale = np.random.default_rng(0).random(steps) + 0.5
    mean = {}
    for key, table in sensitivity.mean.items():
        values = np.broadcast_to(shapes[key.split(".")[1]], table.shape) * scale.reshape(-1, *[1] * (table.ndim - 1))
        mean[key] = values.astype(np.float32)
    return replace(sensitivity, mean=mean)


@pytest.mark.parametrize("operator", OPERATOR_CHOICES)
def test_more_anchors_are_never_worse(operator):
    sensitivity = _smooth()
    errors = [
        plan(sensitivity, anchors=count, strategy=AnchorSchedule(operator=operator)).predicted_error
        for count in range(1, 13)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0.0


@pytest.mark.parametrize("operator", OPERATOR_CHOICES)
def test_planned_is_never_worse_than_fixed_interval(operator):
    sensitivity = make_sensitivity(2, steps=12, width=11)
    for count in range(1, 13):
        planned = plan(sensitivity, anchors=count, strategy=AnchorSchedule(operator))
        fixed = fixed_interval_plan(sensitivity, anchors=count, operator=operator)
        assert planned.predicted_error <= fixed.predicted_error * (1 + 1e-9)
        assert planned.flop_ratio == pytest.approx(fixed.flop_ratio)


@pytest.mark.parametrize("make", [plan, fixed_interval_plan])
def test_speedup_takes_as_many_anchors_as_it_can(make):
    sensitivity = make_sensitivity(0, steps=10, width=9)
    ratios = {count: make(sensitivity, anchors=count).flop_ratio for count in range(1, 11)}
    assert sorted(ratios.values()) == list(ratios.values())
    for speedup in (1.0, 1.3, 2.0, 3.7):
        made = make(sensitivity, speedup=speedup)
        assert len(made.anchors) == max(count for count, ratio in ratios.items() if ratio <= 1 / speedup)
    for count, ratio in ratios.items():
        assert len(make(sensitivity, speedup=1 / ratio).anchors) == count


def test_flop_ratio_counts_each_region():
    sensitivity = make_sensitivity(0, steps=4, regions=2, width=3)
    sensitivity = replace(sensitivity, region_flops=np.array([3.0, 5.0]), total_flops=10.0)
    rows = ((COMPUTE, REUSE, REUSE, COMPUTE), (COMPUTE, COMPUTE, REUSE, COMPUTE))
    assert flop_ratio(sensitivity, rows) == pytest.approx((10 + 7 + 2 + 10) / 40)


def test_impossible_speedup_names_the_most():
    sensitivity = make_sensitivity(0, steps=12, width=2)
    most = 1 / plan(sensitivity, anchors=4, strategy=AnchorSchedule(operator="reuse")).flop_ratio
    with pytest.raises(PlanError, match=rf"speedup of 50 .* most is {most:.3f}, with 4 of 12 steps"):
        plan(sensitivity, speedup=50, strategy=AnchorSchedule(operator="reuse"))
    assert len(plan(sensitivity, speedup=most, strategy=AnchorSchedule(operator="reuse")).anchors) == 4
    for speedup in (0.5, -1, math.nan, math.inf):
        with pytest.raises(PlanError, match=r"speedup is .*finite number, at least 1"):
            plan(sensitivity, speedup=speedup)


def test_impossible_anchors_name_the_way_out():
    sensitivity = make_sensitivity(0, steps=12, width=2)
    for anchors in (0, -1, 13, 2.5):
        with pytest.raises(PlanError, match=rf"anchors is {anchors}; .* from 1 to 12"):
            plan(sensitivity, anchors=anchors)
    with pytest.raises(PlanError, match=r"interval of 4 steps, .* up to 2: .*max_interval >= 4, or use 4 anchors"):
        plan(sensitivity, anchors=3, strategy=AnchorSchedule(operator="reuse"))
    plan(make_sensitivity(0, steps=12, width=4), anchors=3)
    sensitivity.mean["residual.reuse"][1:8] = np.nan
    with pytest.raises(PlanError, match=r"every schedule of 6 anchors .* 'reuse' that was not measured: use 9 anchors"):
        plan(sensitivity, anchors=6, strategy=AnchorSchedule(operator="reuse"))
    assert plan(sensitivity, anchors=9, strategy=AnchorSchedule(operator="reuse")).anchors[:8] == tuple(range(8))


def test_bad_options():
    sensitivity = make_sensitivity()
    with pytest.raises(OptionError, match="exactly one"):
        plan(sensitivity)
    with pytest.raises(OptionError, match="exactly one"):
        plan(sensitivity, anchors=3, speedup=2.0)
    with pytest.raises(OptionError, match=r"operator 'linear' .* reuse, forecast1, forecast2, forecast3, auto"):
        plan(sensitivity, anchors=3, strategy=AnchorSchedule(operator="linear"))
    with pytest.raises(OptionError, match=r"objective 'l2' .* cosine, relative, residual"):
        plan(sensitivity, anchors=3, strategy=AnchorSchedule(objective="l2"))
    small = {"cosine.reuse": sensitivity.mean["cosine.reuse"]}
    only_paper = replace(sensitivity, mean=small, variance=small)
    assert plan(only_paper, anchors=3, strategy=PaperSchedule()).anchors[0] == 0
    with pytest.raises(SensitivityError, match=r"metric 'residual' and operator 'reuse'; measured are cosine\.reuse"):
        plan(only_paper, anchors=3)


def test_plan_carries_what_it_was_made_for():
    sensitivity = make_sensitivity(0, steps=7, width=6, calls_per_step=2)
    made, info = plan(sensitivity, anchors=3), sensitivity.info
    for name in ("fingerprint", "regions", "timesteps", "timestep_input", "scheduler", "scheduler_digest", "guidance"):
        assert getattr(made, name) == getattr(info, name)
    assert made.calls_per_step == 2
    method = dict(made.method)
    assert (method["operator"], method["objective"], method["anchors"]) == ("forecast1", "residual", 3)
    assert made.flop_ratio == pytest.approx(flop_ratio(sensitivity, made.actions))
    assert Plan.from_json(made.to_json()) == made


@pytest.mark.parametrize("operator", OPERATOR_CHOICES)
def test_fixed_interval_spreads_evenly(operator):
    made = fixed_interval_plan(make_sensitivity(0, steps=12, width=3), anchors=4, operator=operator)
    assert made.anchors == (0, 3, 6, 9)
    assert made.predicted_error == pytest.approx(
        plain_cost(make_sensitivity(0, 12, width=3), made.anchors, operator, weighted=False)
    )
    unmeasured = fixed_interval_plan(make_sensitivity(0, steps=50, width=3), anchors=4, operator=operator)
    assert unmeasured.anchors == (0, 12, 25, 37)
    assert unmeasured.predicted_error is None


def test_runs_at_full_size():
    sensitivity = make_sensitivity(0, steps=250, regions=56, width=10)
    made = plan(sensitivity, anchors=72, strategy=AnchorSchedule(operator="auto"))
    assert len(made.anchors) == 72
    assert made.predicted_error == pytest.approx(plain_cost(sensitivity, made.anchors, "auto", weighted=False))


@pytest.mark.parametrize(
    ("goal", "steps", "expected"),
    [
        (Goal(speedup=2.0), None, 10),
        (Goal(speedup=8.3), None, 17),
        (Goal(speedup=8.3), 12, 11),
        (Goal(anchors=5), 50, 20),
        (Goal(anchors=5), None, 10),
        (Goal(max_error=0.1), 50, 10),
        (Goal(speedup=float("inf")), 50, 10),
    ],
)
def test_what_is_measured_reaches_twice_the_mean_distance_of_anchors(
    goal: Goal, steps: int | None, expected: int
) -> None:
    assert goal.reach(steps) == expected


@pytest.mark.parametrize(
    "strategy", [AnchorSchedule(operator="forecast2"), AnchorSchedule(slots="stack"), PaperSchedule()]
)
def test_other_anchors_are_served_as_the_strategy_does(strategy):
    sensitivity = make_sensitivity(3, steps=9, width=5)
    goal = Goal(anchors=3)
    like = plan(sensitivity, goal, strategy)
    at = plans_at(sensitivity, goal, strategy, like)
    assert at(like.anchors).actions == like.actions
    for anchors in every_schedule(9, 3):
        made = at(anchors)
        assert (made is None) == math.isinf(plain_cost(sensitivity, anchors, strategy.operator, weighted=False))
        if made is not None:
            assert made.anchors == anchors
            assert made.slots == like.slots
            assert made.predicted_error is None


def test_plans_of_more_than_anchors_have_no_others():
    sensitivity = make_sensitivity(3, steps=9, width=5)
    goal, strategy = Goal(anchors=3), AnchorSchedule(operator="reuse")
    like = plan(sensitivity, goal, strategy)
    stale = next(step for step in range(9) if step not in like.anchors)
    first = tuple(COMPUTE if step == stale else action for step, action in enumerate(like.actions[0]))
    mixed = replace(like, actions=(first, *like.actions[1:]))
    assert plans_at(sensitivity, goal, strategy, mixed)(like.anchors) is None


def test_other_anchors_keep_what_fits_the_memory():
    sensitivity = make_sensitivity(3, steps=9, width=5)
    profile = make_profile(sensitivity)
    least = slot_memory_bytes(profile, plan(sensitivity, anchors=3, strategy=AnchorSchedule(operator="reuse")).actions)
    goal, strategy = Goal(anchors=3, memory_bytes=least), AnchorSchedule(operator="forecast2", slot_dtype=None)
    like = plan(sensitivity, goal, strategy, profile=profile)
    moved = plans_at(sensitivity, goal, strategy, like, profile)((0, 2, 5))
    kept = slot_memory_bytes(profile, moved.actions, moved.slots, moved.slot_dtype)
    assert kept <= least
