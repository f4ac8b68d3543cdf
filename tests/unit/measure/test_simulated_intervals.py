"""Errors of simulated intervals against the plans that they are of, and the schedules that follow from them."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_denoiser as small
from diffusers import DPMSolverMultistepScheduler
from test_replayed_plans import STEPS, Loop, ddim, plan_of, recorded
from tracing import eager_graphs

import soda_compile
from soda_compile.errors import OptionError, SensitivityError
from soda_compile.measure.closest import strategies_for
from soda_compile.measure.planned_run import PlannedRun
from soda_compile.measure.player import playing
from soda_compile.plans.derived import derive, schedule_of
from soda_compile.plans.interval_errors import IntervalErrors
from soda_compile.plans.interval_vectors import IntervalVectors
from soda_compile.plans.over_samples import OverSamples
from soda_compile.plans.sensitivity import Sensitivity

WIDTH = 4


@pytest.fixture(autouse=True, scope="module")
def eager() -> Iterator[None]:
    with eager_graphs():
        yield


@pytest.fixture(scope="module", params=["ddim", "multistep"])
def loop(request: pytest.FixtureRequest, eager: None) -> Loop:
    return ddim() if request.param == "ddim" else Loop(DPMSolverMultistepScheduler())


@pytest.fixture(scope="module")
def measured(loop: Loop) -> Sensitivity:
    return soda_compile.calibrate(loop.model, loop, generations=1, max_interval=WIDTH, scheduler=loop.scheduler)


@pytest.fixture(scope="module")
def simulated(loop: Loop, measured: Sensitivity) -> Sensitivity:
    return soda_compile.simulate(recorded(loop), measured)


@pytest.mark.parametrize(
    ("row", "order", "anchor", "spacing", "length"),
    [("CCCCCCCr", 0, 6, 0, 2), ("CCCCCrrr", 0, 4, 0, 4), ("CCCCC111", 1, 4, 1, 4), ("CCCCCC22", 2, 5, 1, 3)],
)
def test_the_last_interval_costs_what_the_plan_with_it_alone_is_off(
    loop: Loop, simulated: Sensitivity, row: str, order: int, anchor: int, spacing: int, length: int
) -> None:
    errors = soda_compile.compare(recorded(loop), {"plan": plan_of(row)}).errors["plan"]
    assert simulated.intervals is not None
    square = simulated.intervals.squares[order, anchor, spacing, length]
    assert square == pytest.approx(np.square(errors).mean(), rel=2e-3)


def test_what_does_not_fit_is_not_measured(simulated: Sensitivity) -> None:
    assert simulated.intervals is not None
    squares = simulated.intervals.squares
    assert squares.shape == (3, STEPS, WIDTH + 2, WIDTH + 2)
    assert np.isnan(squares[1, 2, 3, 2:]).all()  # there is no anchor three steps before step 2
    assert np.isnan(squares[2, 3, 2, 2:]).all()
    assert np.isnan(squares[0, 6, 0, 3:]).all()  # past the end
    assert np.isnan(squares[1, 3, 4, 2:]).all()  # nor four before step 3, between spacings that were run
    assert np.isfinite(squares[1, 3, 3, 2])
    assert np.isfinite(squares[1, 6, 4, 2])  # between spacings that were run
    assert (squares[..., 1] == 0).sum() > 0
    assert simulated.intervals.samples == 4
    assert "denoiser calls" in simulated.info.notes["intervals"]


def test_growth_carries_errors_to_the_end(loop: Loop, simulated: Sensitivity) -> None:
    assert simulated.intervals is not None
    for row, anchor, length in (("CCrrCCCC", 1, 3), ("CCCrrrCC", 2, 4), ("CCCCrrCC", 3, 3)):
        errors = soda_compile.compare(recorded(loop), {"plan": plan_of(row)}).errors["plan"]
        ratio = simulated.intervals.squares[0, anchor, 0, length] / np.square(errors).mean()
        assert 0.4 < ratio < 2.5  # growth is that of other errors nearby


def test_the_schedule_is_the_best_of_all(simulated: Sensitivity) -> None:
    assert simulated.intervals is not None
    squares = simulated.intervals.squares.astype(np.float64)
    squares[0] = squares[0][:, :1]

    def cost(anchors: tuple[int, ...]) -> float:
        total, spacing = 0.0, 0
        for anchor, end in zip(anchors, (*anchors[1:], STEPS), strict=True):
            length = end - anchor
            if length > WIDTH + 1:
                return np.inf
            options = squares[:, anchor, spacing, length]
            total += 0.0 if length == 1 else float(np.nanmin(options)) if not np.isnan(options).all() else np.inf
            spacing = length
        return total

    for count in (3, 4, 5):
        plan = soda_compile.plan(simulated, anchors=count, strategy=soda_compile.SimulatedSchedule())
        best = min(cost((0, *others)) for others in itertools.combinations(range(1, STEPS), count - 1))
        assert cost(plan.anchors) == pytest.approx(best)
        assert plan.predicted_error == pytest.approx(best)
        assert dict(plan.method)["planner"] == "simulated intervals"
    lower = soda_compile.plan(simulated, anchors=4, strategy=soda_compile.SimulatedSchedule(operator="reuse"))
    assert set("".join(lower.rows)) == {"C", "r"}


def test_vectors_are_as_long_as_the_errors_and_point_where_the_samples_go(loop: Loop, simulated: Sensitivity) -> None:
    """The samples of this model are short enough to be kept as they are."""
    found = simulated.intervals
    assert found is not None
    assert found.worst is not None
    assert found.vectors is not None
    for order, anchor, spacing, length in ((0, 6, 0, 2), (0, 4, 0, 4), (1, 4, 1, 4), (2, 5, 1, 3)):
        squares = np.square(found.vectors.of(order, anchor, spacing, length)).sum(axis=1)
        assert squares.mean() == pytest.approx(found.squares[order, anchor, spacing, length], rel=1e-2)
        assert np.quantile(squares, 0.9) == pytest.approx(found.worst[order, anchor, spacing, length], rel=1e-2)
    recording = recorded(loop)
    with playing(recording) as player:
        run = PlannedRun.begin(player, recording, plan_of("CCCCCCCr"))
        for _ in range(STEPS - 1):
            run.take_step()
        off = run.deviations(run.try_step()).numpy()
    vectors = found.vectors.of(0, 6, 0, 2)[:, : off.shape[1]]
    cosine = (off * vectors).sum(axis=1) / np.linalg.norm(off, axis=1) / np.linalg.norm(vectors, axis=1)
    assert (cosine > 0.99).all()


def test_between_spacings_vectors_are_mixed(simulated: Sensitivity) -> None:
    assert simulated.intervals is not None
    vectors = simulated.intervals.vectors
    assert vectors is not None
    assert vectors.spacings == (1, 2, 3, 5)
    mixed = (vectors.of(1, 6, 3, 2) + vectors.of(1, 6, 5, 2)) / 2
    np.testing.assert_allclose(vectors.of(1, 6, 4, 2), mixed, rtol=1e-5)
    np.testing.assert_array_equal(vectors.of(1, 4, 4, 2), vectors.of(1, 4, 3, 2))  # 5 steps before there is none
    np.testing.assert_array_equal(vectors.of(0, 4, 4, 2), vectors.of(0, 4, 0, 2))


@pytest.mark.parametrize("over_samples", ["mean", "worst"])
def test_the_search_finds_the_best_of_all(simulated: Sensitivity, over_samples: OverSamples) -> None:
    found = simulated.intervals
    assert found is not None
    assert found.vectors is not None
    assert found.worst is not None
    table = (found.squares if over_samples == "mean" else found.worst).astype(np.float64)
    table[0] = table[0][:, :1]

    def cost(anchors: tuple[int, ...]) -> float:
        parts, spacing = [np.zeros((4, 1))], 0
        for anchor, end in zip(anchors, (*anchors[1:], STEPS), strict=True):
            length = end - anchor
            if length > WIDTH + 1 or np.isnan(options := table[:, anchor, spacing, length]).all():
                return np.inf
            parts.append(found.vectors.of(int(np.nanargmin(options)), anchor, spacing, length))  # type: ignore[union-attr]
            spacing = length
        squares = np.square(sum(parts)).sum(axis=1)
        return float(squares.mean() if over_samples == "mean" else np.quantile(squares, 0.9))

    for count in (3, 4, 5):
        strategy = soda_compile.SearchedSchedule(over_samples=over_samples)
        plan = soda_compile.plan(simulated, anchors=count, strategy=strategy)
        best = min(cost((0, *others)) for others in itertools.combinations(range(1, STEPS), count - 1))
        assert cost(plan.anchors) == pytest.approx(best, rel=1e-5)
        assert plan.predicted_error == pytest.approx(best, rel=1e-5)
        assert dict(plan.method).get("over_samples", "mean") == over_samples


def test_the_worst_of_samples_is_another_objective(measured: Sensitivity, simulated: Sensitivity) -> None:
    for strategy in (soda_compile.AnchorSchedule, soda_compile.SimulatedSchedule):
        mean, worst = (
            soda_compile.plan(simulated, anchors=4, strategy=strategy(over_samples=over))  # type: ignore[arg-type]
            for over in ("mean", "worst")
        )
        assert mean.predicted_error is not None
        assert worst.predicted_error is not None
        assert worst.predicted_error > mean.predicted_error
    table = measured.table_over("worst", "residual", "reuse")
    assert (table >= measured.table("residual", "reuse"))[~np.isnan(table)].all()


def test_the_file_gives_them_back(simulated: Sensitivity, measured: Sensitivity, tmp_path: Path) -> None:
    simulated.save(tmp_path / "with.safetensors")
    measured.save(tmp_path / "without.safetensors")
    loaded = Sensitivity.load(tmp_path / "with.safetensors").intervals
    assert loaded is not None
    assert simulated.intervals is not None
    np.testing.assert_array_equal(loaded.squares, simulated.intervals.squares)
    np.testing.assert_array_equal(loaded.worst, simulated.intervals.worst)
    assert loaded.vectors is not None
    assert simulated.intervals.vectors is not None
    np.testing.assert_array_equal(loaded.vectors.values, simulated.intervals.vectors.values)
    assert (loaded.vectors.spacings, loaded.vectors.unit) == ((1, 2, 3, 5), simulated.intervals.vectors.unit)
    assert loaded.samples == 4
    assert Sensitivity.load(tmp_path / "without.safetensors").intervals is None


def test_measurements_are_merged_by_samples(simulated: Sensitivity) -> None:
    assert simulated.intervals is not None
    twice = IntervalErrors(simulated.intervals.squares * 4, 12)
    other = replace(simulated, info=replace(simulated.info, seeds=(7,)), intervals=twice)
    merged = soda_compile.merge(simulated, other).intervals
    assert merged is not None
    assert merged.samples == 16
    np.testing.assert_allclose(merged.squares, simulated.intervals.squares * 3.25, rtol=1e-6)


def test_vectors_of_all_samples_lie_side_by_side(simulated: Sensitivity) -> None:
    assert simulated.intervals is not None
    other = replace(simulated, info=replace(simulated.info, seeds=(7,)))
    merged = soda_compile.merge(simulated, other).intervals
    assert merged is not None
    assert merged.vectors is not None
    assert simulated.intervals.vectors is not None
    once = simulated.intervals.vectors.of(1, 4, 2, 3)
    np.testing.assert_allclose(merged.vectors.of(1, 4, 2, 3), np.concatenate([once, once]), rtol=1e-3)


def test_files_without_vectors_are_read_and_say_what_is_missing(simulated: Sensitivity, tmp_path: Path) -> None:
    assert simulated.intervals is not None
    older = IntervalErrors(simulated.intervals.squares, simulated.intervals.samples)
    replace(simulated, intervals=older).save(tmp_path / "older.safetensors")
    loaded = Sensitivity.load(tmp_path / "older.safetensors")
    assert soda_compile.plan(loaded, anchors=4, strategy=soda_compile.SimulatedSchedule()).anchors
    for strategy, missing in (
        (soda_compile.SearchedSchedule(), "directions"),
        (soda_compile.SimulatedSchedule(over_samples="worst"), "worst errors"),
    ):
        with pytest.raises(SensitivityError, match=rf"{missing}.*simulate\(recording, sensitivity\) again"):
            soda_compile.plan(loaded, anchors=4, strategy=strategy)
    assert set(strategies_for(loaded)) >= {"simulated"}
    more = {"simulated, worst", "searched", "searched, worst"}
    assert set(strategies_for(simulated)) - set(strategies_for(loaded)) == more


def test_another_schedule_has_none(simulated: Sensitivity) -> None:
    wanted = replace(schedule_of(simulated), scheduler_digest="another")
    assert derive(simulated, wanted).sensitivity.intervals is None


def test_spacings_that_do_not_fit_the_memory_are_left_out(
    loop: Loop, measured: Sensitivity, simulated: Sensitivity
) -> None:
    recording = recorded(loop, 1)
    with pytest.raises(OptionError, match=r"what one step keeps takes [1-9]") as raised:
        soda_compile.simulate(recording, measured, memory_bytes=1)
    (one,) = map(int, re.findall(r"takes (\d+) bytes", str(raised.value)))
    for copies, spacings in ((6, (1, 2)), (11, (1, 2, 3)), (12, (1, 2, 3, 5))):
        found = soda_compile.simulate(recording, measured, memory_bytes=copies * one).intervals
        assert found is not None
        assert found.vectors is not None
        assert found.vectors.spacings == spacings


def test_errors_name_the_way_out(loop: Loop, measured: Sensitivity) -> None:
    with pytest.raises(SensitivityError, match="simulate"):
        soda_compile.plan(measured, anchors=4, strategy=soda_compile.SimulatedSchedule())
    with pytest.raises(OptionError, match="max_interval, 4"):
        soda_compile.simulate(recorded(loop, 1), measured, lengths=5)
    with pytest.raises(SensitivityError, match="expected float32"):
        IntervalErrors(np.zeros((3, 8, 4, 5), dtype=np.float32), 1)
    with pytest.raises(SensitivityError, match="of 9 steps"):
        replace(measured, intervals=IntervalErrors(np.zeros((3, 9, 4, 4), dtype=np.float32), 1))
    squares, vectors = np.zeros((3, 8, 4, 4), dtype=np.float32), np.zeros((3, 8, 2, 4, 1, 16), dtype=np.float16)
    with pytest.raises(SensitivityError, match="worst"):
        IntervalErrors(squares, 1, squares[:2])
    with pytest.raises(SensitivityError, match="beside"):
        IntervalErrors(squares, 2, None, IntervalVectors(vectors, (1, 2), 1.0))
    with pytest.raises(SensitivityError, match="spacings"):
        IntervalVectors(vectors, (2, 1), 1.0)
    with pytest.raises(SensitivityError, match="float16"):
        IntervalVectors(vectors, (1, 2, 3), 1.0)
    with pytest.raises(OptionError, match="'median' is not known; use one of mean, worst"):
        soda_compile.plan(measured, anchors=4, strategy=soda_compile.AnchorSchedule(over_samples="median"))  # type: ignore[arg-type]
    assert len(small.REGIONS) == len(measured.info.regions)
