"""The unified strategy's problem, written as plainly as possible and solved by trying everything."""

import itertools
import math

import numpy as np

from soda_compile.plans.actions import COMPUTE, FORECAST1, FORECAST2, PRUNE_RATES, REUSE, prune

STALE = (REUSE, FORECAST1, FORECAST2)


def row_error(sensitivity, region, row, score=None, weights=None, anchors=(0,), inherited=0.0):
    """The error of one region's row, step by step; infinite where it is not measured or cannot be done.

    What is computed or pruned between anchors has the share `inherited` of the error of the best stale value.
    """
    computed, total = [], 0.0
    for step, action in enumerate(row):
        stale = {kind: stale_error(sensitivity, region, computed, step, kind) for kind in STALE}
        if step in anchors:
            error = 0.0
        elif action == COMPUTE:
            error = inherited * min(stale.values())
        elif action.kind == "prune":
            age, name = step - computed[-1], sensitivity.info.regions[region]
            own = sensitivity.error("residual", f"prune.{score}", step, name, age, rate=action.rate)
            error = (1 - inherited) * own + inherited * min(stale.values())
        else:
            error = stale[action]
        if not math.isfinite(error):
            return math.inf
        total += error * (1.0 if weights is None else weights[step])
        computed += [step] * (action == COMPUTE)
    return total


def stale_error(sensitivity, region, computed, step, action):
    """Of reuse or a forecast after these computed steps; infinite where it is not measured or cannot be done."""
    if action.history > len(computed):
        return math.inf
    spacing = computed[-1] - computed[-2] if len(computed) > 1 else 1
    if action.order == 2 and computed[-1] - 2 * spacing < 0:
        return math.inf
    name = sensitivity.info.regions[region]
    error = sensitivity.error("residual", str(action), step, name, step - computed[-1], spacing)
    return math.inf if math.isnan(error) else error


def row_cost(sensitivity, region, row):
    """FLOPs of one region's row."""
    flops = sensitivity.region_flops[region]
    removed = sensitivity.region_prune_flops
    total = 0.0
    for action in row:
        if action == COMPUTE:
            total += flops
        elif action.kind == "prune":
            total += flops - removed[region, PRUNE_RATES.index(action.rate)]
    return total


def all_rows(sensitivity, region, anchors, score=None, rates=(), inherited=0.0):
    """Every row that computes at the anchors and is measured: (rows, costs [n], errors [n])."""
    menu = (COMPUTE, *STALE, *(prune(rate) for rate in rates))
    steps = range(sensitivity.info.steps)
    rows, costs, errors = [], [], []
    for row in itertools.product(*((COMPUTE,) if step in anchors else menu for step in steps)):
        if math.isfinite(error := row_error(sensitivity, region, row, score, None, anchors, inherited)):
            rows.append(row)
            costs.append(row_cost(sensitivity, region, row))
            errors.append(error)
    return rows, np.array(costs), np.array(errors)


def frontier(sensitivity, anchors, score=None, rates=(), inherited=0.0):
    """(cost, error) of every combination of the regions' useful rows; costs in FLOPs of the regions alone."""
    costs, errors = np.zeros(1), np.zeros(1)
    for region in range(len(sensitivity.info.regions)):
        _, own_costs, own_errors = all_rows(sensitivity, region, anchors, score, rates, inherited)
        costs, errors = _useful((costs[:, None] + own_costs).ravel(), (errors[:, None] + own_errors).ravel())
    return costs, errors


def _useful(costs, errors):
    """Without the combinations that another beats in both."""
    if not len(costs):
        return costs, errors
    order = np.lexsort((errors, costs))
    costs, errors = costs[order], errors[order]
    best = np.minimum.accumulate(errors)
    keep = np.r_[True, errors[1:] < best[:-1]]
    return costs[keep], errors[keep]


def convex_hull(costs, errors):
    """Indices of the points on the lower convex hull, by cost."""
    hull = []
    for index in np.argsort(costs):
        while len(hull) > 1 and _turns_up(costs, errors, hull[-2], hull[-1], index):
            hull.pop()
        hull.append(int(index))
    return hull


def _turns_up(costs, errors, a, b, c):
    return (errors[b] - errors[a]) * (costs[c] - costs[a]) >= (errors[c] - errors[a]) * (costs[b] - costs[a])
