"""The paper's schedule (SODA, arXiv 2603.07057), against three independent ways to find it."""

import math
from dataclasses import replace
from functools import cache

import networkx as nx
import numpy as np
import pytest
from planner_tables import every_schedule, make_sensitivity

from soda_compile.errors import OptionError
from soda_compile.planner import PaperSchedule, plan
from soda_compile.plans.actions import COMPUTE, REUSE

CASES = [(seed, steps, width) for seed in range(3) for steps, width in [(1, 1), (6, 5), (8, 3), (10, 9)]]


def interval_error(sensitivity, start, length):
    """Cosine error summed over layers and modules for the steps that the interval leaves stale."""
    table = sensitivity.mean["cosine.reuse"].astype(np.float64)
    if length - 1 > sensitivity.info.max_interval:
        return math.inf
    return sum(float(table[start + age, :, age - 1].sum()) for age in range(1, length))


def feasible_counts(steps, width):
    return range(-(-steps // (width + 1)), steps + 1)


@pytest.mark.parametrize(("seed", "steps", "width"), CASES)
def test_against_every_schedule(seed, steps, width):
    sensitivity = make_sensitivity(seed, steps, width=width)
    for count in feasible_counts(steps, width):
        ends = {anchors: (*anchors[1:], steps) for anchors in every_schedule(steps, count)}
        costs = {
            anchors: sum(interval_error(sensitivity, a, b - a) for a, b in zip(anchors, end, strict=True))
            for anchors, end in ends.items()
        }
        made = plan(sensitivity, anchors=count, strategy=PaperSchedule())
        assert made.predicted_error == pytest.approx(min(costs.values()), abs=1e-9)
        assert costs[made.anchors] == pytest.approx(min(costs.values()), abs=1e-9)


@pytest.mark.parametrize(("seed", "steps", "width"), CASES)
def test_against_the_recurrence_as_printed(seed, steps, width):
    """dp[t][i+1] = min_n { E_dp(t, n) + dp[t+n][i] }, t counting down from T to the end of sampling."""
    sensitivity = make_sensitivity(seed, steps, width=width)

    @cache
    def dp(t, i):
        """Least error of everything before time t with i anchors."""
        if i == 0 or t == steps:
            return 0.0 if i == 0 and t == steps else math.inf
        return min(interval_error(sensitivity, steps - (t + n), n) + dp(t + n, i - 1) for n in range(1, steps - t + 1))

    for count in feasible_counts(steps, width):
        assert plan(sensitivity, anchors=count, strategy=PaperSchedule()).predicted_error == pytest.approx(
            dp(0, count), abs=1e-9
        )


@pytest.mark.parametrize(("seed", "steps", "width"), CASES)
def test_against_a_shortest_path(seed, steps, width):
    sensitivity = make_sensitivity(seed, steps, width=width)
    for count in feasible_counts(steps, width):
        graph = nx.DiGraph()
        for used in range(count):
            for start in range(steps):
                for end in range(start + 1, min(steps, start + width + 1) + 1):
                    error = interval_error(sensitivity, start, end - start)
                    graph.add_edge((start, used), (end, used + 1), weight=error)
        length, path = nx.single_source_dijkstra(graph, (0, 0), (steps, count))
        made = plan(sensitivity, anchors=count, strategy=PaperSchedule())
        assert made.predicted_error == pytest.approx(length, abs=1e-9)
        assert made.anchors == tuple(step for step, _ in path[:-1])


def test_it_reuses_and_ignores_step_weights():
    sensitivity = make_sensitivity(0, steps=8, width=7)
    made = plan(sensitivity, anchors=3, strategy=PaperSchedule())
    assert {action for row in made.actions for action in row} == {COMPUTE, REUSE}
    other = replace(sensitivity, step_weights=sensitivity.step_weights[::-1].copy() * 100)
    assert plan(other, anchors=3, strategy=PaperSchedule()).anchors == made.anchors
    assert dict(made.method)["planner"] == "paper"


@pytest.mark.parametrize("option", [{"operator": "reuse"}, {"objective": "cosine"}, {"step_weights": True}])
def test_it_has_no_settings(option):
    with pytest.raises(TypeError, match=next(iter(option))):
        PaperSchedule(**option)
    with pytest.raises(OptionError, match=r"plan takes no .* such as strategy="):
        plan(make_sensitivity(), anchors=3, strategy=PaperSchedule(), **option)
