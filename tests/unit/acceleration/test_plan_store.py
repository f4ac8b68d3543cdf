"""What is kept of a measurement: whole or not at all, whatever else writes to the folder or is found in it."""

import itertools
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from planner_tables import make_sensitivity
from threads import at_once

from soda_compile.acceleration import plan_store
from soda_compile.acceleration.plan_store import PlanStore, Request, Setting
from soda_compile.planner import AnchorSchedule, Goal
from soda_compile.planner import plan as make_plan
from soda_compile.plans.plan import Plan
from soda_compile.plans.sensitivity import Sensitivity

NAMES = ("transformer", "transformer_2")
SETTING = Setting("Pipeline", dict.fromkeys(NAMES, "0123"), "4567", 6, None)
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
    save, write_atomic = Sensitivity.save, plan_store.write_atomic
    monkeypatch.setattr(
        Sensitivity, "save", lambda self, path: turns.write(ids[threading.get_ident()], lambda: save(self, path))
    )
    monkeypatch.setattr(
        plan_store,
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


@pytest.mark.parametrize(
    "text",
    ["[]", '"text"', "null", "3", "{", "", "{}", '{"name": "a"}', '{"measured": "transformer", "name": "a"}']
    + ['{"measured": {"transformer": 1}, "name": "a"}', '{"measured": [1, 2], "name": "a"}']
    + ['{"measured": [], "name": "a"}', '{"measured": ["vae"], "name": "a"}']
    + [json.dumps({"measured": NAMES, "name": name}) for name in (3, None, [])],
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
    assert str(path) in caplog.text
    store.save_measurement(SETTING, measured(2))
    assert store.measurement(SETTING) is not None


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
