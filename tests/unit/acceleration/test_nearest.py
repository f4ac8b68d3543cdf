"""The note on a measurement that serves for another setting: what differs, and advice that can be followed."""

from dataclasses import replace
from pathlib import Path

from planner_tables import make_sensitivity

from soda_compile.acceleration.measurement_folder import Measurement, Request
from soda_compile.acceleration.nearest import nearest_first, note
from soda_compile.acceleration.plan_store import PlanStore
from soda_compile.acceleration.setting import Setting
from soda_compile.planner import AnchorSchedule, Goal

SAME = {"transformer": "a"}
MEASURED = Setting("Pipeline", SAME, SAME, "Euler 1", 4, (4.0, 3.0, 2.0, 1.0), {"height": 64.0, "guidance_scale": 5.0})
REQUEST = Request(Goal(speedup=2.0), AnchorSchedule())


def called(**call: float) -> Setting:
    return replace(MEASURED, call={**MEASURED.call, **call})


def told(measured: Setting, present: Setting) -> str:
    (near,) = nearest_first(
        present, Measurement(measured, {"transformer": make_sensitivity(1)}), PlanStore(Path("unused"))
    )
    return note(near, present, REQUEST, {})


def test_the_note_names_what_differs_and_the_arguments_that_measure_it() -> None:
    text = told(MEASURED, called(height=128.0, guidance_scale=3.0))
    assert "guidance_scale=3 instead of 5; height=128 instead of 64" in text
    arguments = "speedup=2, num_inference_steps=4, pipeline_options={'guidance_scale': 3, 'height': 128}, ...)"
    assert f"soda_compile.restore(pipe) and soda_compile.accelerate(pipe, {arguments}" in text
    assert "without measurement=" in text


def test_the_note_on_timesteps_asks_for_them() -> None:
    text = told(MEASURED, replace(MEASURED, timesteps=(4.0, 3.5, 2.0, 1.0)))
    assert "other timesteps" in text
    assert "with the sigmas or timesteps of this call in pipeline_options" in text


def test_the_stored_are_ordered_and_the_given_goes_alone(tmp_path: Path) -> None:
    store, present = PlanStore(tmp_path), called(height=128.0)
    tables = {"transformer": make_sensitivity(1)}
    for setting in (called(height=512.0), replace(MEASURED, models={"transformer": "b"}), MEASURED):
        store.save_measurement(setting, tables)
    store.save_measurement(replace(MEASURED, architectures={"transformer": "other"}), tables)
    found = nearest_first(present, None, store)
    assert [near.measured for near in found] == [
        MEASURED,
        called(height=512.0),
        replace(MEASURED, models={"transformer": "b"}),
    ]
    assert found[0].load().setting == MEASURED
    given = Measurement(called(height=8.0), tables)
    assert [near.load() for near in nearest_first(present, given, store)] == [given]


def test_only_numbers_that_are_no_size_or_guidance_may_move_the_part_that_is_run(tmp_path: Path) -> None:
    store = PlanStore(tmp_path)
    store.save_measurement(MEASURED, {"transformer": make_sensitivity(1)})
    for call, moves in (({"height": 8.0}, False), ({"guidance_scale": 1.0}, False), ({"strength": 0.5}, True)):
        (near,) = nearest_first(called(**call), None, store)
        assert near.part_differs is moves
