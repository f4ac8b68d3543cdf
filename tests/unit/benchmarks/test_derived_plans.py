"""What benchmarks/derived_plans.py makes of plans and tables."""

import numpy as np
import pytest
from level_tables import level_sensitivity
from planner_tables import make_sensitivity

import soda_compile
from benchmarks.derived_plans import objective, tables_apart


@pytest.mark.parametrize("anchors", [3, 5, 8])
def test_the_objective_is_the_planners(anchors: int) -> None:
    sensitivity = make_sensitivity(steps=12, regions=3, width=8)
    plan = soda_compile.plan(sensitivity, anchors=anchors)
    assert objective(plan, sensitivity) == pytest.approx(plan.predicted_error)


def test_tables_are_compared_entry_by_entry() -> None:
    one = level_sensitivity(np.linspace(1, 0.1, 10))
    assert tables_apart(one, one) == (0.0, 0.0)
    other = level_sensitivity(np.linspace(1, 0.1, 10) * 0.9)
    median, tenth = tables_apart(other, one)
    assert 0.02 < median < tenth < 0.5
