"""How much modules change from step to step."""

from dataclasses import replace

import numpy as np
import pytest
from planner_tables import make_sensitivity

from soda_compile.planner.change import least_change


def test_it_is_the_best_step_by_the_best_action_over_modules_by_their_flops():
    sensitivity = make_sensitivity(steps=4, regions=2, width=2)
    tables = {key: np.full_like(table, 0.9) for key, table in sensitivity.mean.items()}
    tables["relative.reuse"][2, :, 0] = [0.2, 0.6]
    tables["relative.forecast1"][3, :, 0, 0] = [0.1, 0.9]
    tables["relative.reuse"][3, :, 1] = 0  # an older step; the one before is not that close
    tables["residual.reuse"][:] = 0  # another metric
    flops = np.array([3.0, 1.0])
    sensitivity = replace(sensitivity, mean=tables, region_flops=flops, total_flops=5.0)
    assert least_change(sensitivity) == pytest.approx((0.2 * 3 + 0.6) / 4)
    tables["relative.reuse"][2] = np.nan
    assert least_change(sensitivity) == pytest.approx((0.1 * 3 + 0.9) / 4)


def test_what_was_not_measured_says_nothing():
    sensitivity = make_sensitivity(steps=2, regions=1, width=1)
    nothing = {key: np.full_like(table, np.nan) for key, table in sensitivity.mean.items()}
    assert least_change(replace(sensitivity, mean=nothing)) is None
