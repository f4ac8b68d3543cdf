"""Weights that are shifted for the last samples."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_replayed_plans import PLAN, ddim, plan_of, recorded
from tracing import eager_graphs

import soda_compile
from soda_compile.measure import refining
from soda_compile.measure.fitting import RIDGES, refined
from soda_compile.measure.planned_run import PlannedRun
from soda_compile.measure.player import playing
from soda_compile.measure.refining import chosen_amounts, shifts_of
from soda_compile.measure.weight_numbers import Numbers, by_step, polynomial_weights
from soda_compile.plans.fitted_weights import OUTPUT, FittedWeights

SAMPLES, VALUES = 6, 40


@pytest.fixture(autouse=True, scope="module")
def eager() -> Iterator[None]:
    with eager_graphs():
        yield


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_numbers_stand_for_weights() -> None:
    polynomial = (
        FittedWeights(2, 1, (1.5, -0.5)),
        FittedWeights(2, OUTPUT, (1.0, 0.0, 0.0)),
        FittedWeights(3, 0, (1,)),
    )
    fitted = (FittedWeights(2, OUTPUT, (0.7, 0.4, -0.2)), FittedWeights(3, 0, (0.9,)), FittedWeights(4, 0, (0.5,)))
    numbers = Numbers.of(polynomial, fitted)
    assert [each.step for each in numbers.weights()] == [2, 2, 3]
    for mine, wanted in zip(numbers.weights(), (polynomial[0], *fitted[:2]), strict=True):
        assert mine.values == pytest.approx(wanted.values)
    assert numbers.values[1] == pytest.approx([0.9, -0.2, 0.2]), "a scale, and factors of newer less older outputs"
    assert [each.step for each in numbers.changed()] == [2, 3]
    assert Numbers.of(polynomial).changed() == ()
    again = numbers.with_flat(numbers.flat())
    assert [list(each) for each in again.values] == [list(each) for each in numbers.values]
    assert [each.order for each in numbers.at(2).polynomial] == [1, OUTPUT]
    shorter = Numbers.of(polynomial, (FittedWeights(2, OUTPUT, (0.7, 0.4)),))
    assert shorter.changed() == (), "weights for another number of kept outputs do not fit"


def test_each_number_of_a_stretch_has_a_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = Numbers.of(polynomial_weights(PLAN, 1))  # CrC11C12
    by_interval = [(1, (0,)), (1, (1,)), (1, (2,))]
    shifts = shifts_of(PLAN.anchors, numbers)
    assert sorted(place for shift in shifts for place in shift.places) == list(range(len(numbers.flat())))
    assert [(shift.first, shift.places) for shift in shifts if shift.first == 1] == by_interval
    pair = [shift for shift in shifts if shift.first == 3]
    assert all(len(shift.places) == 2 for shift in pair), "steps 3 and 4 read alike and are shifted together"
    monkeypatch.setattr(refining, "STRETCHES", 1)
    together = shifts_of(PLAN.anchors, numbers)
    assert len(together) < len(shifts)
    assert {shift.first for shift in together} == {1, 3, 7}, "an operator's numbers begin where it is first used"


def test_amounts_take_back_what_slopes_explain() -> None:
    slopes = drawn(3, SAMPLES, VALUES)
    wanted = np.array([0.3, -1.2, 0.5])
    off = -np.einsum("a,asv->sv", wanted, slopes)
    found = chosen_amounts(off, slopes)
    assert found == pytest.approx(wanted, abs=0.01)


def test_amounts_make_the_mean_norm_small_and_not_that_of_squares() -> None:
    slopes = np.ones((1, SAMPLES, VALUES))
    off = np.concatenate([np.full((SAMPLES - 1, VALUES), -1.0), np.full((1, VALUES), -50.0)])
    found = chosen_amounts(off, slopes)
    assert found is not None
    assert found[0] < 3  # 9.2 would be best for squares, and 1 for norms


def test_what_only_chance_explains_is_seldom_taken() -> None:
    draws = [chosen_amounts(drawn(SAMPLES, VALUES, seed=seed), drawn(5, SAMPLES, VALUES)) for seed in range(40)]
    assert sum(each is not None for each in draws) < 10


def test_samples_that_are_not_off_or_not_finite_give_no_amounts() -> None:
    off, slopes = drawn(SAMPLES, VALUES, seed=1), drawn(2, SAMPLES, VALUES)
    assert chosen_amounts(np.zeros_like(off), slopes) is None
    assert chosen_amounts(off * np.inf, slopes) is None
    assert chosen_amounts(off, slopes * np.nan) is None


def test_branches_go_on_by_themselves() -> None:
    recording = recorded(ddim())
    plan = replace(PLAN, weights=polynomial_weights(PLAN))  # others can stand in their place
    with playing(recording) as player:
        run = PlannedRun.begin(player, recording, plan)
        run.take_step()
        run.take_step()
        branches = list(run.branches())
        others = torch.cat([branch.end({3: {1: (3.0, -1.0)}}) for branch in run.branches()])
        mine, its = run.end(), torch.cat([branch.end() for branch in branches])
        from_start = PlannedRun.begin(player, recording, plan).end()
    assert torch.equal(mine, its)
    assert torch.equal(mine, from_start)
    assert not torch.allclose(mine, others)


def test_slopes_are_those_of_the_last_samples() -> None:
    recording, step = recorded(ddim()), 1e-3
    numbers = Numbers.of(polynomial_weights(PLAN, 2), PLAN.weights)
    plan = replace(PLAN, weights=numbers.polynomial)
    shifts = shifts_of(PLAN.anchors, numbers)
    with playing(recording) as player:
        run = PlannedRun.begin(player, recording, plan)
        before, off, slopes = refining._slopes(run, numbers, shifts, step)
        assert before == pytest.approx(np.linalg.norm(off, axis=1), rel=0.2)  # a sketch of it
        for shift, slope in list(zip(shifts, slopes, strict=True))[::3]:
            flat = numbers.flat()
            flat[list(shift.places)] += step
            moved = PlannedRun.begin(player, recording, plan).end(by_step(numbers.with_flat(flat).weights()))
            still = PlannedRun.begin(player, recording, plan).end(by_step(numbers.weights()))
            whole = ((moved - still) / step).norm(dim=1).numpy()
            assert np.linalg.norm(slope, axis=1) == pytest.approx(whole, rel=0.3, abs=1e-3)


def test_shifted_weights_bring_last_samples_closer_and_others_too() -> None:
    loop = ddim()
    recording = recorded(loop, generations=4)
    stepwise = soda_compile.fit(recording, PLAN, refine=False)
    fit = refined(recording, stepwise)
    assert fit.after.mean() < 0.95 * stepwise.after.mean()
    assert fit.denoiser_calls > stepwise.denoiser_calls
    assert list(fit.before) == list(stepwise.before)
    again = soda_compile.compare(recording, {"refined": fit.plan}).errors["refined"]
    assert again == pytest.approx(fit.after, rel=1e-3)
    assert soda_compile.fit(recording, PLAN).plan == fit.plan
    plans = {"stepwise": stepwise.plan, "refined": fit.plan}
    fresh = soda_compile.compare(recorded(loop, generations=4, first_seed=100), plans).errors
    assert fresh["refined"].mean() < fresh["stepwise"].mean()


def test_one_sample_says_nothing_about_others() -> None:
    loop = ddim()
    recording = soda_compile.record(
        loop.model, lambda seed: loop(seed, batch=1), generations=1, scheduler=loop.scheduler
    )
    stepwise = soda_compile.fit(recording, PLAN, refine=False)
    assert refined(recording, stepwise).plan == stepwise.plan


def test_a_shift_that_brings_nothing_closer_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = recorded(ddim())
    stepwise = soda_compile.fit(recording, PLAN, refine=False)
    monkeypatch.setattr(refining, "chosen_amounts", lambda off, slopes: np.full(len(slopes), 5.0))
    fit = refined(recording, stepwise)
    assert fit.plan == stepwise.plan
    assert list(fit.after) == list(stepwise.after)


def test_a_plan_that_computes_everything_has_nothing_to_shift() -> None:
    recording = recorded(ddim())
    everything = plan_of("C" * PLAN.steps)
    fit = soda_compile.fit(recording, everything)
    assert fit.plan == everything
    assert fit.denoiser_calls == pytest.approx(2 * PLAN.steps * (1 + len(RIDGES)))
