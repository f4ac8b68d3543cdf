"""What a plan expects of its forecasts at anchors, against the tables it was made of."""

from dataclasses import replace

import numpy as np
import pytest
from planner_tables import make_sensitivity

import soda_compile
from soda_compile.planner import AnchorSchedule, FixedInterval, Unified
from soda_compile.planner.watch import watched_region
from soda_compile.plans.watched_region import forecasts_at_anchors


@pytest.mark.parametrize(
    "strategy", [AnchorSchedule(), AnchorSchedule("forecast2"), AnchorSchedule("reuse"), Unified()]
)
def test_expected_errors_are_those_of_the_tables(strategy) -> None:
    sensitivity = make_sensitivity(seed=3, steps=16, regions=4, width=6)
    plan = soda_compile.plan(sensitivity, speedup=1.6, strategy=strategy)
    watched = plan.watched
    number = plan.regions.index(watched.region)
    sources = forecasts_at_anchors(plan.actions[number], plan.anchors)
    assert dict(watched.errors).keys() <= sources.keys()
    for step, error in watched.errors:
        read = sources[step]
        name = ("reuse", "forecast1", "forecast2")[len(read) - 1]
        spacing = read[0] - read[1] if len(read) > 1 else 1
        assert error == sensitivity.error("relative", name, step, watched.region, step - read[0], spacing)


def test_it_is_the_region_that_misses_most_of_the_residual_stream() -> None:
    sensitivity = make_sensitivity(steps=12, regions=3, width=6)
    for heavy in range(3):
        scale = np.where(np.arange(3) == heavy, 1.0, 0.01).astype(np.float32)
        mean = {
            key: table * scale.reshape(1, 3, *[1] * (table.ndim - 2)) if key.startswith("residual") else table
            for key, table in sensitivity.mean.items()
        }
        plan = soda_compile.plan(replace(sensitivity, mean=mean), anchors=4, strategy=FixedInterval())
        assert plan.watched.region == sensitivity.info.regions[heavy]


def test_nothing_is_expected_where_nothing_was_measured() -> None:
    sensitivity = make_sensitivity(steps=12, regions=2, width=3)
    assert soda_compile.plan(sensitivity, anchors=12).watched is None, "it computes everything"
    far = soda_compile.plan(sensitivity, anchors=2, strategy=FixedInterval())
    assert far.anchors == (0, 6)
    assert far.watched is None
    plan = soda_compile.plan(sensitivity, anchors=6)
    residual = {key: table for key, table in sensitivity.mean.items() if not key.startswith("relative")}
    without = replace(sensitivity, mean=residual, variance={key: sensitivity.variance[key] for key in residual})
    assert plan.watched is not None
    assert watched_region(without, plan) is None
