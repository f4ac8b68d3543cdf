"""Sensitivities derived for other schedules against what would have been measured there."""

from dataclasses import replace

import numpy as np
import pytest
from level_tables import level_sensitivity, schedule
from planner_tables import make_sensitivity

from soda_compile.errors import SensitivityError
from soda_compile.planner import plan
from soda_compile.plans.derived import derive
from soda_compile.plans.noise_schedule import NoiseSchedule, positions
from soda_compile.plans.operators import OPERATORS
from soda_compile.plans.sensitivity import Sensitivity, merge

LEVELS = np.linspace(1.0, 0.04, 25)
MEASURED = level_sensitivity(LEVELS, scores=("drift",))


def finer(steps: int) -> np.ndarray:
    return np.linspace(1.0, 0.04, steps)


def ratios(derived: Sensitivity, key: str) -> np.ndarray:
    """Derived / measured there, of all entries that are both."""
    info = derived.info
    there = level_sensitivity(info.noise_levels, info.max_interval, ("drift",))
    found = derived.mean[key].astype(np.float64) / there.mean[key]
    return found[np.isfinite(found)]


@pytest.mark.parametrize("every", [2, 3, 4])
def test_levels_that_were_visited_are_taken_over(every: int) -> None:
    levels = LEVELS[::every]
    derived = derive(MEASURED, schedule(levels))
    width = 6 // every
    there = level_sensitivity(levels, width, ("drift",))
    info = derived.sensitivity.info
    assert (info.steps, info.max_interval, info.derived_from) == (len(levels), width, "25 steps of Measured")
    reach = len(OPERATORS) * width  # of the widest entry; none is cut off by ``max_interval`` here
    assert reach <= 24
    for kind in ("mean", "variance"):
        for key, table in getattr(there, kind).items():
            np.testing.assert_allclose(getattr(derived.sensitivity, kind)[key], table, rtol=2e-6, err_msg=key)
    assert (derived.loss.visited, derived.loss.unknown, derived.loss.beyond) == (1.0, 0.0, 0)
    assert str(derived.loss).endswith("100% of the entries were measured")


@pytest.mark.parametrize("steps", [10, 15, 20, 37, 49])
@pytest.mark.parametrize(
    ("key", "tolerance"),
    [("residual.reuse", 0.01), ("residual.forecast1", 0.03), ("cosine.reuse", 0.02), ("residual.prune.drift", 0.01)],
)
def test_between_the_levels_errors_are_those_of_the_law(steps: int, key: str, tolerance: float) -> None:
    apart = np.abs(ratios(derive(MEASURED, schedule(finer(steps))).sensitivity, key) - 1)
    assert np.median(apart) < tolerance
    assert np.quantile(apart, 0.95) < 8 * tolerance


def test_only_what_was_measured_is_known() -> None:
    """Against loops over all entries: known are those whose distances the measurement has."""
    levels = finer(17)
    derived = derive(MEASURED, schedule(levels)).sensitivity
    where = np.interp(-levels, -LEVELS, np.arange(25.0))
    for operator in OPERATORS:
        table = derived.mean[f"residual.{operator.name}"]
        for step, _, age, *spacing in np.ndindex(table.shape):
            ages = operator.ages(age + 1, spacing[0] + 1 if spacing else 1)
            found = np.isfinite(table[(step, 0, age, *spacing)])
            if step < ages[-1]:
                assert not found
                continue
            kept = where[[step - each for each in ages]]
            between = (kept[0] - kept[-1]) / operator.order if operator.order else 1.0
            assert found == (where[step] - kept[0] <= 6.03 and between <= 6.03)


def test_errors_vanish_with_the_distance() -> None:
    derived = derive(MEASURED, schedule(finer(97))).sensitivity
    reuse = derived.table("residual", "reuse")
    assert derived.info.max_interval == 6
    assert (reuse[8:, :, 0] < 0.35 * reuse[8:, :, 3]).all()  # ages of a quarter and of a whole measured step
    assert (np.diff(reuse[8:], axis=2) > 0).all()


def test_an_error_of_zero_stays_zero() -> None:
    still = replace(MEASURED, mean={key: 0 * table for key, table in MEASURED.mean.items()})
    table = derive(still, schedule(finer(20))).sensitivity.table("residual", "forecast1")
    assert set(np.unique(table[np.isfinite(table)])) == {0.0}


def test_forecasts_of_uneven_steps_are_not_thought_better_than_they_are() -> None:
    levels = 1 - 0.96 * np.linspace(0, 1, 20) ** 1.3
    derived = derive(MEASURED, schedule(levels))
    found = ratios(derived.sensitivity, "residual.forecast1")
    assert np.quantile(found, 0.05) > 0.9
    assert np.median(found) < 1.2
    assert derived.loss.uneven > 1.25
    assert "the longest step is " in str(derived.loss)


def test_the_estimate_of_the_loss_is_that_of_leaving_steps_out() -> None:
    rng = np.random.default_rng(0)
    rough = {key: rng.lognormal(sigma=0.5, size=table.shape) for key, table in MEASURED.mean.items()}
    shaken = {key: (table * rough[key]).astype(np.float32) for key, table in MEASURED.mean.items()}
    smooth = derive(MEASURED, schedule(finer(20))).loss
    rougher = derive(replace(MEASURED, mean=shaken), schedule(finer(20))).loss
    assert 0 < smooth.median < 0.04
    assert rougher.median > 5 * smooth.median
    assert f"(errors within {smooth.median:.1%}," in str(smooth)
    short = level_sensitivity(finer(5), 3)
    assert np.isnan(derive(short, schedule(finer(9))).loss.median)


def test_step_weights_are_shared_out_or_given() -> None:
    derived = derive(MEASURED, schedule(finer(49))).sensitivity
    assert derived.step_weights.sum() == pytest.approx(MEASURED.step_weights.sum())
    np.testing.assert_allclose(derived.step_weights[:48], 0.02)  # a step of half the length
    given = np.arange(49.0)
    made = derive(MEASURED, schedule(finer(49), step_weights=given)).sensitivity
    np.testing.assert_array_equal(made.step_weights, given)


def test_the_measured_schedule_is_the_measurement() -> None:
    info = MEASURED.info
    own = NoiseSchedule(info.noise_levels, info.timesteps, info.scheduler, info.scheduler_config, info.scheduler_digest)
    assert derive(MEASURED, own).sensitivity is MEASURED
    other = derive(MEASURED, schedule(LEVELS + 1e-9 * np.sin(np.arange(25)) - 1e-9))
    assert (other.sensitivity.info.scheduler, other.sensitivity.info.scheduler_digest) == ("Wanted", "d2")
    assert other.sensitivity.mean is MEASURED.mean
    assert str(other.loss) == "measured at these 25 steps"


def test_plans_say_what_they_are_derived_from() -> None:
    derived = derive(MEASURED, schedule(finer(13)))
    made = plan(derived.sensitivity, anchors=6)
    assert (made.steps, made.scheduler, made.scheduler_digest) == (13, "Wanted", "d2")
    assert made.timesteps == pytest.approx(1000 * finer(13))
    assert dict(made.method)["derived_from"] == "25 steps of Measured"
    assert made.actions == plan(level_sensitivity(finer(13), 3), anchors=6).actions
    assert "derived_from" not in dict(plan(MEASURED, anchors=12).method)


def test_a_derived_sensitivity_is_a_sensitivity(tmp_path) -> None:
    derived = derive(MEASURED, schedule(finer(20))).sensitivity
    derived.save(tmp_path / "derived.safetensors")
    loaded = Sensitivity.load(tmp_path / "derived.safetensors")
    assert loaded.info == derived.info
    assert loaded.info.notes["derivation"].startswith("20 steps derived from 25")
    for key, table in derived.mean.items():
        np.testing.assert_array_equal(loaded.mean[key], table)
    again = derive(loaded, schedule(finer(10))).sensitivity
    assert again.info.derived_from == "25 steps of Measured"
    measured = level_sensitivity(finer(20), derived.info.max_interval, ("drift",), scheduler="Wanted")
    alike = replace(measured.info, scheduler_config={}, scheduler_digest="d2", seeds=(8, 9))
    with pytest.raises(SensitivityError, match="cannot merge: derived_from is '25 steps of Measured' in one and None"):
        merge(derived, replace(measured, info=alike))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (
            np.linspace(0.9, 0.5, 60),
            r"a step of Wanted at 60 steps is 0\.17 of the 25 that were .* at least 15 ",
        ),
        (np.linspace(1.0, 0.04, 4), r"at least 8\.0 of the 25 measured steps old, .*max_interval=6; .* at least 8,"),
        ([1.0, 0.5, 0.5, 0.2], r"Wanted has noise level 0\.5 at step 1 and 0\.5 at the next.*Heun"),
        ([0.2, 0.5], r"noise level 0\.2 at step 0 and 0\.5 at the next"),
    ],
)
def test_schedules_too_far_apart_are_refused(levels: list[float], message: str) -> None:
    with pytest.raises(SensitivityError, match=message):
        derive(MEASURED, schedule(levels))


def test_levels_beyond_what_was_measured_are_refused_or_told() -> None:
    inner = level_sensitivity(np.linspace(0.8, 0.4, 11))
    derived = derive(inner, schedule(np.linspace(0.84, 0.36, 13)))
    assert derived.loss.beyond == 2
    assert "2 steps lie just outside the measured levels" in str(derived.loss)
    with pytest.raises(SensitivityError, match=r"level 0\.9 \(timestep 900\) at step 0, 2\.5 measured steps beyond"):
        derive(inner, schedule(np.linspace(0.9, 0.4, 11)))


def test_another_way_of_noising_is_refused() -> None:
    levels = np.linspace(1.0, 0.04, 13)
    with pytest.raises(SensitivityError, match=r"at timestep [\d.]+, where Wanted had it near timestep 520: .*betas"):
        positions(schedule(LEVELS), NoiseSchedule(tuple(levels), tuple(1000 * levels**2), "Wanted"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_levels": None}, "noise levels of the 25 measured steps are not known; calibrate with"),
        ({"noise_levels": None, "notes": {"noise_levels": "no noise"}}, r"are not known \(no noise\)"),
        ({"notes": {"first_step": "5", "schedule_steps": "30"}}, "over 25 steps from step 5 of 30"),
        ({"noise_levels": (0.5,) * 25}, r"of Measured has noise level 0\.5 at step 0 and 0\.5 at the next"),
    ],
)
def test_measurements_that_cannot_be_read_between_are_refused(change: dict, message: str) -> None:
    with pytest.raises(SensitivityError, match=message):
        derive(replace(MEASURED, info=replace(MEASURED.info, **change)), schedule(finer(13)))


def test_one_step_is_no_range() -> None:
    with pytest.raises(SensitivityError, match="one step was measured"):
        derive(make_sensitivity(steps=1, width=1, noise_levels=(1.0,)), schedule(finer(5)))


def test_merging_takes_levels_from_where_they_are_known() -> None:
    one, two, three = (make_sensitivity(0, first_seed=seed) for seed in (0, 10, 20))
    levels = (0.9, 0.8, 0.6, 0.5, 0.3, 0.1)
    known = replace(two, info=replace(two.info, noise_levels=levels))
    assert merge(one, known).info.noise_levels == levels
    assert merge(known, one).info.noise_levels == levels
    other = replace(three, info=replace(three.info, noise_levels=tuple(level + 0.01 for level in levels)))
    with pytest.raises(SensitivityError, match="cannot merge: noise_levels is"):
        merge(known, other)


@pytest.mark.parametrize(
    ("levels", "message"), [((0.5,), "1 noise levels for 6 steps"), ((1.5, 0.9, 0.8, 0.7, 0.6, 0.5), "between 0 and 1")]
)
def test_impossible_levels_are_refused(levels: tuple[float, ...], message: str) -> None:
    with pytest.raises(SensitivityError, match=message):
        make_sensitivity(steps=6, noise_levels=levels)
