"""The leaderboard's arithmetic, and that its emulators leave out what they say and nothing else."""

import math
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3]))

from torch.utils.flop_counter import FlopCounterMode

from benchmarks.leaderboard import store, trial
from benchmarks.leaderboard.branch_rules import branch_rule
from benchmarks.leaderboard.flops import counted
from benchmarks.leaderboard.forecasts import (
    differences,
    fitted_weights,
    hermite,
    hermite_polynomial,
    predicted,
    taylor,
)
from benchmarks.leaderboard.spacing import spread
from benchmarks.leaderboard.stack import stack_rule
from benchmarks.leaderboard.stack_rules import Accumulated, FittedStack, Magnitudes
from benchmarks.leaderboard.stack_truth import stack_truth
from benchmarks.leaderboard.statistics import bootstrap_deviation, mean_interval, paired_ratio, rank_correlation, ranks
from benchmarks.leaderboard.table import markdown
from benchmarks.leaderboard.tuning import Setting, Tuner, counts

STEPS = 6  # of the subject


def test_hermite_polynomials_are_those_of_the_physicists():
    for order in range(5):
        wanted = np.polynomial.hermite.hermval(0.7, [0] * order + [1])
        assert hermite_polynomial(0.7, order) == pytest.approx(wanted)


def test_hermite_forecasts_are_scaled_twice():
    assert hermite(0.5)(3, 2) == pytest.approx(0.25 * (4 * 1.5**2 - 2) / 2)
    assert hermite(math.sqrt(0.5))(3, 1) == pytest.approx(taylor(3, 1))


def test_differences_are_over_the_distances_of_computed_steps():
    values = {0: 1.0, 2: 5.0, 5: 2.0}
    factors = differences(values[0], [], 0, 2)
    for before, step in pairwise(values):
        factors = differences(values[step], factors, step - before, 2)
    first, second = (5.0 - 1.0) / 2, (2.0 - 5.0) / 3
    assert factors == pytest.approx([2.0, second, (second - first) / 3])
    assert predicted(factors, 2, taylor) == pytest.approx(2.0 + second * 2 + (second - first) / 3 * 2)


def test_forecasts_of_first_order_continue_a_line():
    factors = differences(7.0, differences(1.0, [], 0, 1), 3, 1)
    assert predicted(factors, 4, taylor) == pytest.approx(15.0)


def test_fitted_weights_find_the_combination():
    residuals = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0], [3.0, -1.0, 5.0]])
    residuals[2] = 2 * residuals[1] - 0.5 * residuals[0]
    assert fitted_weights(residuals @ residuals.T, [1, 0], 2, 0.0) == pytest.approx((2.0, -0.5))
    assert fitted_weights(residuals @ residuals.T, [1, 0], 2, 1e9) == pytest.approx((1.0, 0.0), abs=1e-4)


@pytest.mark.parametrize(("count", "warm_up"), [(5, 1), (7, 3), (20, 2), (1, 1)])
def test_masks_have_their_count_and_their_warm_up(count, warm_up):
    mask = spread(20, count, warm_up)
    assert sum(mask) == count
    assert all(mask[:warm_up])


def test_a_count_that_divides_the_steps_is_a_fixed_interval():
    assert [step for step, computed in enumerate(spread(20, 5)) if computed] == [0, 4, 8, 12, 16]
    with pytest.raises(ValueError, match="must not fall"):
        spread(5, 2, 3)


def fake(cost_of, error_of):
    calls = []

    def evaluate(setting):
        calls.append(setting.text)
        return cost_of(int(setting.text)), error_of(int(setting.text))

    search = counts(lambda count: Setting(str(count), None), 50, 1)
    return Tuner(evaluate), [search, search], calls


def test_the_best_setting_within_the_budget_is_found_with_few_tries():
    tuner, searches, calls = fake(lambda count: count / 50, lambda count: 1 / count)
    assert tuner.best(searches, 0.25).setting.text == "12"
    assert len(calls) == len(set(calls)) <= 7
    assert tuner.best(searches, 0.5).setting.text == "25"


def test_a_cheaper_setting_that_is_closer_wins():
    tuner, searches, _ = fake(lambda count: count / 50, lambda count: 0.1 if count == 6 else 1.0)
    tuner.cost(searches[0][50 - 6])
    assert tuner.best(searches, 0.25).setting.text == "6"


def test_a_budget_out_of_reach_and_a_setting_that_fails_have_reasons():
    tuner, searches, _ = fake(lambda count: 0.3 + count / 100, lambda count: 1.0)
    assert tuner.best(searches, 0.2) is None
    assert tuner.why_none() == "its least cost is 0.310"

    def fail(setting):
        raise ValueError("no such block\nmore")

    broken = Tuner(fail)
    assert broken.best(searches, 0.5) is None
    assert broken.why_none() == "ValueError: no such block"


def test_paired_ratios_and_intervals():
    values = np.linspace(1, 2, 40)
    assert paired_ratio(values * 3, values) == pytest.approx((3, 3, 3))
    low, high = mean_interval(values)
    assert low < values.mean() < high
    error = values.std() / math.sqrt(40)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    with pytest.raises(ValueError, match="paired"):
        paired_ratio([1.0], [1.0, 2.0])


def test_the_deviation_of_a_distance_is_that_over_fresh_samples():
    draw = np.random.default_rng(1)

    def distance(one, other):
        return float(abs(one.mean(0) - other.mean(0) + 3).sum())

    def labelled():  # labels that are far apart take turns
        return draw.normal(size=(2, 400, 2)) + 10 * (np.arange(400) % 4)[:, None]

    fresh = [distance(*labelled()) for _ in range(400)]
    assert bootstrap_deviation(distance, *labelled(), 4) == pytest.approx(np.std(fresh), rel=0.2)
    assert bootstrap_deviation(distance, *labelled(), 1) > 5 * np.std(fresh), "as if labels were drawn too"


def test_ranks():
    assert ranks({"a": 2.0, "b": 1.0, "c": 2.0, "d": math.nan}) == {"b": 1, "a": 2, "c": 2}
    assert ranks({"a": 2.0, "b": 1.0}, largest_first=True) == {"a": 1, "b": 2}
    assert rank_correlation({"a": 1, "b": 2, "c": 3}, {"a": 3, "b": 2, "c": 1}) == pytest.approx(-1)
    assert math.isnan(rank_correlation({"a": 1, "b": 2}, {"a": 1, "b": 2}))


def row(method, error, **more):
    scores = {"cost": 0.25, "held_bytes": 2048, "relative_l2": [error, 2 * error], "relative_l2_mean": 1.5 * error,
              "relative_l2_worst": 2 * error, "psnr": -error, "ssim": 1 - error, "label_agreement": 1.0,
              "seconds": 1.0, "calibration_seconds": 1.0, "setting": "s"}  # fmt: skip
    kind = "ours" if method.startswith("ours") else "rule"
    return {"model": "m", "method": method, "kind": kind, "source": "", "budget": 0.25, **scores, **more}


def test_the_table_is_ordered_by_closeness_and_names_what_is_missing(tmp_path):
    path = tmp_path / "board.json"
    store.describe(path, "m", {"title": "a model", "seconds": 2.0, "settings": {}})
    distance = {"to_original": 1.25, "to_original_floor": 1.5, "to_original_floor_deviation": 0.04}
    for each in (row("FORA", 0.4), row("ours, closest", 0.1, frechet=distance)):
        store.add(path, each)
    store.add(
        path, {"model": "m", "method": "FORA", "kind": "rule", "source": "", "budget": 0.25, "reason": "out of time"}
    )
    store.add(path, {"model": "m", "method": "PAB", "kind": "rule", "source": "", "budget": 0.25, "reason": "no block"})
    text = markdown(store.load(path))
    assert text.index("| 1 | **ours, closest** |") < text.index("| 2 | FORA |")
    assert "4.00 (4.00–4.00)" in text
    assert "| 1.25 (floor 1.5 ± 0.04) |" in text
    assert "| PAB | 0.25 | no block |" in text
    assert "out of time" not in text  # a row with scores is not lost to one without


@pytest.fixture(scope="module")
def wanted(subject):
    return trial.run(subject, trial.original(subject), range(3))


def test_flops_are_those_of_the_counter_of_torch(subject, wanted):
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        subject.run(subject.pipe, range(3), STEPS)
    assert wanted.cost * 3 == counter.get_total_flops()
    with counted() as nothing:
        torch.ones(3) + 1
    assert nothing.total == 0


def of(subject, installed, wanted):
    found = trial.run(subject, installed, range(3), wanted.cost)
    again = trial.run(subject, installed, range(3), wanted.cost)
    assert torch.equal(found.latents, again.latents)  # nothing is left of a generation
    return found.cost, float(trial.relative(found.latents, wanted.latents).max()), found.held_bytes


EVERY = (True,) * STEPS
SOME = spread(STEPS, 3, 2)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_branches_are_left_out_where_the_mask_says(subject, wanted, order):
    assert of(subject, branch_rule(subject, EVERY, order, taylor), wanted)[:2] == (1.0, 0.0)
    cost, error, held = of(subject, branch_rule(subject, SOME, order, taylor), wanted)
    assert 0.5 < cost < 0.6
    assert 0 < error < 1
    one = 2 * 16 * 16 * 4 * 6  # both branches of guidance, tokens, width, bytes, modules
    assert held == one * (order + 1)


def test_the_stack_is_left_out_where_a_rule_says(subject, wanted):
    truth = stack_truth(subject, range(2))
    whole = FittedStack(EVERY, truth.gram, 2)
    assert of(subject, stack_rule(subject, whole), wanted)[:2] == (1.0, 0.0)
    cost, error, _ = of(subject, stack_rule(subject, FittedStack(SOME, truth.gram, 2)), wanted)
    assert 0.5 < cost < 0.6
    assert 0 < error < 1


def test_teacache_computes_the_first_and_the_last_step_at_least(subject, wanted):
    polynomial = stack_truth(subject, range(2)).tea_polynomial(1)
    cost, error, _ = of(subject, stack_rule(subject, Accumulated(0.0, polynomial, 9, STEPS)), wanted)
    assert error == 0
    assert 1 < cost < 1.05  # the norm it looks at is computed once more, as in the authors' code
    cost, _, _ = of(subject, stack_rule(subject, Accumulated(1e9, polynomial, 9, STEPS)), wanted)
    assert 2 / STEPS < cost < 2.6 / STEPS


def test_magcache_skips_no_more_in_a_row_than_it_may(subject, wanted):
    ratios = stack_truth(subject, range(2)).ratios
    assert ratios[0] == 1
    cost, _, _ = of(subject, stack_rule(subject, Magnitudes(1e9, ratios, 2, 1)), wanted)
    assert 2 / STEPS < cost < 2.6 / STEPS  # steps 0 and 3
