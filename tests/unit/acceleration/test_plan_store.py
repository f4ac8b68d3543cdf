"""What is kept of a measurement: whole or not at all, whatever else writes to the folder or is found in it."""

import itertools
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from planner_tables import make_sensitivity
from threads import at_once

from soda_compile.acceleration import measurement_folder
from soda_compile.acceleration.measurement_folder import FORMAT, Request, Verified
from soda_compile.acceleration.plan_store import PlanStore
from soda_compile.acceleration.setting import Setting
from soda_compile.planner import AnchorSchedule, Goal
from soda_compile.planner import plan as make_plan
from soda_compile.plans.plan import Plan
from soda_compile.plans.sensitivity import Sensitivity

NAMES = ("transformer", "transformer_2")
SAME = dict.fromkeys(NAMES, "0123")
TIMESTEPS = (1000.0, 800.0, 600.0, 400.0, 200.0, 100.0)
SETTING = Setting("Pipeline", SAME, SAME, "Euler 4567", 6, TIMESTEPS, {"height": 64.0, "sizes": (1.0, 2.0), "on": True})
REQUEST = Request(Goal(anchors=3), AnchorSchedule())


def measured(seed: int) -> dict[str, Sensitivity]:
    return {name: make_sensitivity(seed, guidance=float(seed)) for name in NAMES}


def seed_of(found: dict[str, Sensitivity]) -> float:
    """The seed that all tables have in common."""
    (seed,) = {table.info.guidance for table in found.values()}
    assert found.keys() == set(NAMES)
    assert seed is not None
    return seed


def plans(seed: int) -> dict[str, Plan]:
    return {name: make_plan(table, Goal(anchors=3), AnchorSchedule()) for name, table in measured(seed).items()}


def test_what_is_stored_is_found(tmp_path: Path) -> None:
    store = PlanStore(tmp_path / "new")
    assert store.measurement(SETTING) is None
    assert store.plans(SETTING, REQUEST) is None
    stored = store.save_measurement(SETTING, measured(1))
    found = store.measurement(SETTING)
    assert found is not None
    assert (found.name, seed_of(dict(found.sensitivities))) == (stored.name, 1)
    assert store.plans(SETTING, REQUEST) is None
    store.save_plans(SETTING, REQUEST, stored.name, plans(1))
    assert store.plans(SETTING, REQUEST) == plans(1)


def test_plans_that_were_tried_on_more_serve_and_on_fewer_do_not(tmp_path: Path) -> None:
    store, asked = PlanStore(tmp_path), replace(REQUEST, tried=4)
    stored = store.save_measurement(SETTING, measured(1))
    store.save_plans(SETTING, REQUEST, stored.name, plans(1))
    store.save_plans(SETTING, replace(REQUEST, tried=2), stored.name, plans(1))
    other = replace(REQUEST, goal=Goal(anchors=2), tried=16)
    store.save_plans(SETTING, other, stored.name, plans(1))
    assert store.tried_plans(SETTING, asked) is None
    store.save_plans(SETTING, asked, stored.name, plans(1))
    store.save_plans(SETTING, replace(REQUEST, tried=16), stored.name, plans(2))
    assert plans(1) != plans(2)
    assert store.tried_plans(SETTING, asked) == plans(2), "the one that was tried on the most"
    assert store.tried_plans(SETTING, replace(REQUEST, tried=17)) is None


def test_a_new_measurement_replaces_the_old_one_and_its_plans(tmp_path: Path) -> None:
    store = PlanStore(tmp_path)
    first = store.save_measurement(SETTING, measured(1))
    store.save_plans(SETTING, REQUEST, first.name, plans(1))
    store.save_measurement(SETTING, measured(2))
    found = store.measurement(SETTING)
    assert found is not None
    assert seed_of(dict(found.sensitivities)) == 2
    assert store.plans(SETTING, REQUEST) is None
    assert len(list(store.folder_of(SETTING).iterdir())) == len(NAMES) + 1
    store.save_plans(SETTING, REQUEST, first.name, plans(1))  # by a process that does not know yet
    assert store.plans(SETTING, REQUEST) is None


WRITES = len(NAMES) + 1


class Turns:
    """Lets two threads write files in a given order, and looks at the store behind each write."""

    def __init__(self, order: tuple[int, ...], look: Callable[[], None]) -> None:
        self.order, self.look = list(order), look
        self.condition = threading.Condition()

    def write(self, who: int, write: Callable[[], None]) -> None:
        with self.condition:
            assert self.condition.wait_for(lambda: self.order[0] == who, timeout=60)
            write()
            self.look()
            self.order.pop(0)
            self.condition.notify_all()


@pytest.mark.parametrize("order", sorted(set(itertools.permutations((1,) * WRITES + (2,) * WRITES))))
def test_two_savers_at_once_never_leave_a_mix(
    order: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, seen = PlanStore(tmp_path), []

    def look() -> None:
        found = store.measurement(SETTING)
        seen.append(None if found is None else seed_of(dict(found.sensitivities)))

    turns, ids = Turns(order, look), {}
    save, write_atomic = Sensitivity.save, measurement_folder.write_atomic
    monkeypatch.setattr(
        Sensitivity, "save", lambda self, path: turns.write(ids[threading.get_ident()], lambda: save(self, path))
    )
    monkeypatch.setattr(
        measurement_folder,
        "write_atomic",
        lambda path, data: turns.write(ids[threading.get_ident()], lambda: write_atomic(path, data)),
    )

    def saver(seed: int) -> None:
        ids[threading.get_ident()] = seed
        store.save_measurement(SETTING, measured(seed))

    at_once(saver, (1, 2))
    assert len(seen) == 2 * WRITES
    first = seen.index(next(seed for seed in seen if seed is not None))
    assert None not in seen[first:], "a complete measurement was lost on the way"
    assert seen[-1] == order[-1]


def changed(**entries: object) -> str:
    """The text of a setting file with some entries replaced, as JSON."""
    names = list(NAMES)
    about = {"format": FORMAT, "name": "a", "date": "", "model": None, "measured": names, "pipeline": "Pipeline"}
    about |= {"models": SAME, "architectures": SAME, "scheduler": "Euler 4567", "steps": 6, "timesteps": TIMESTEPS}
    return json.dumps({**about, "call": {}, **entries})


@pytest.mark.parametrize(
    "text",
    ["[]", '"text"', "null", "3", "{", "", "{}", '{"name": "a"}', '{"measured": "transformer", "name": "a"}']
    + [changed(measured=measured) for measured in ("transformer", {"transformer": 1}, [1, 2], [], ["vae"])]
    + [changed(name=name) for name in (3, None, [], "../a", "a/b", "")]
    + [changed(measured=["../transformer", "transformer_2"]), changed(format="soda-measurement/9"), changed(steps=7)],
)
def test_a_setting_file_of_another_form_is_named_and_taken_as_none(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = PlanStore(tmp_path)
    store.save_measurement(SETTING, measured(1))
    path = store.folder_of(SETTING) / "setting.json"
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert store.measurement(SETTING) is None
        assert store.plans(SETTING, REQUEST) is None
    assert str(path.parent) in caplog.text
    store.save_measurement(SETTING, measured(2))
    assert store.measurement(SETTING) is not None


def test_a_folder_of_version_2_is_left_alone_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It does not say what it was measured under, so it must not serve."""
    store, old = PlanStore(tmp_path), {"pipeline": "Pipeline", "models": SAME, "scheduler": "4567", "steps": 6}
    made = store.save_measurement(SETTING, measured(1))
    path = store.folder_of(SETTING) / "setting.json"
    path.write_text(json.dumps({**old, "guidance": None, "measured": sorted(NAMES), "name": made.name}))
    with caplog.at_level(logging.WARNING):
        assert not list(store.measured_like(SETTING))
        assert store.measurement(SETTING) is None
        other = tmp_path / "another"
        other.mkdir()
        (other / "setting.json").write_bytes(path.read_bytes())
        assert not list(store.measured_like(SETTING))
    (record,) = caplog.records  # one for all of them
    assert "version 2" in record.getMessage()
    assert str(tmp_path) in record.getMessage()
    assert len(list(store.folders())) == 2


def test_a_folder_under_another_name_is_not_taken_for_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, other = PlanStore(tmp_path), replace(SETTING, call={"height": 128.0})
    store.save_measurement(SETTING, measured(1))
    store.folder_of(SETTING).rename(store.folder_of(other))
    assert store.measurement(other) is None
    assert "not what its name stands for" in caplog.text
    ((_, found),) = store.measured_like(other)
    assert found == SETTING


def test_only_the_same_pipeline_and_architecture_is_alike(tmp_path: Path) -> None:
    store = PlanStore(tmp_path)
    for setting in (SETTING, replace(SETTING, pipeline="Other"), replace(SETTING, architectures={"transformer": "1"})):
        store.save_measurement(setting, measured(1))
    tuned = replace(SETTING, models=dict.fromkeys(NAMES, "tuned"), steps=9)
    assert [found for _, found in store.measured_like(tuned)] == [SETTING]


def test_errors_are_recorded_with_their_measurement(tmp_path: Path) -> None:
    store, verified = PlanStore(tmp_path), Verified("speedup-2.0-abc", (4, 5), (0.01, 0.03))
    made = store.save_measurement(SETTING, measured(1))
    store.save_verified(SETTING, made.name, verified)
    assert store.verified(made) == [verified]
    assert (verified.mean, verified.worst) == (pytest.approx(0.02), 0.03)
    store.save_measurement(SETTING, measured(2))
    assert store.verified(made) == []
    assert not list(tmp_path.glob("*/*.verified.json")), "replaced with what it is of"


@pytest.mark.parametrize("text", ["[]", '"text"', "null", "3", "{", "", "{}", '{"schema": ["soda-plan/1"]}'])
def test_a_plan_file_of_another_form_is_named_and_made_again(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = PlanStore(tmp_path)
    name = store.save_measurement(SETTING, measured(1)).name
    store.save_plans(SETTING, REQUEST, name, plans(1))
    path = next(store.folder_of(SETTING).glob("transformer_2.*.plan.json"))
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert store.plans(SETTING, REQUEST) is None
    assert str(path) in caplog.text


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    store = PlanStore(tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING):
        name = store.save_measurement(SETTING, measured(1)).name
        store.save_plans(SETTING, REQUEST, name, plans(1))
        assert store.measurement(SETTING) is None
        assert store.plans(SETTING, REQUEST) is None
    (record,) = caplog.records
    assert str(store.folder) in record.getMessage()
    assert "SODA_COMPILE_CACHE" in record.getMessage()
