"""``soda-compile store``: what is listed, shown and removed, for people and as JSON."""

import json
from pathlib import Path

import pytest
from planner_tables import make_sensitivity
from typer.testing import CliRunner, Result

from soda_compile.acceleration.measurement_folder import MeasurementFolder, Request, Verified
from soda_compile.acceleration.plan_store import PlanStore
from soda_compile.acceleration.setting import Setting
from soda_compile.cli import app
from soda_compile.planner import AnchorSchedule, Goal
from soda_compile.planner import plan as make_plan

REQUEST = Request(Goal(anchors=3), AnchorSchedule())
CALL = {"height": 512.0, "width": 768.0, "guidance_scale": 4.5}


def setting(steps: int) -> Setting:
    names = {"transformer": f"weights{steps}"}
    return Setting("SomePipeline", names, names, "Euler 4567", steps, tuple(range(steps, 0, -1)), CALL)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two measurements, one of them verified, and a folder of version 2."""
    monkeypatch.setenv("SODA_COMPILE_CACHE", str(tmp_path))
    store = PlanStore(tmp_path)
    for number in (6, 7):
        table = make_sensitivity(number)
        made = store.save_measurement(setting(number), {"transformer": table}, "owner/name" if number == 6 else None)
        store.save_plans(made.setting, REQUEST, made.name, {"transformer": make_plan(table, REQUEST.goal)})
    store.save_verified(made.setting, made.name, Verified(REQUEST.name, (4, 5), (0.01, 0.03)))
    (tmp_path / "0ld0ld").mkdir()
    (tmp_path / "0ld0ld" / "setting.json").write_text('{"measured": ["transformer"], "name": "a"}')
    (tmp_path / "profiles").mkdir()
    return tmp_path


def invoke(*arguments: str, input: str | None = None) -> Result:
    return CliRunner().invoke(app, ["store", *arguments], input=input)


def succeed(*arguments: str, input: str | None = None) -> str:
    result = invoke(*arguments, input=input)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_list_shows_what_is_stored(cache: Path) -> None:
    text = succeed("list")
    lines = {number: next(line for line in text.splitlines() if setting(number).key in line) for number in (6, 7)}
    assert "owner/name" in lines[6]
    assert "SomePipeline" in lines[7]
    assert "512 x 768" in lines[7]
    assert "4.5" in lines[7]
    assert "2.00%" in lines[7]
    assert "%" not in lines[6]
    assert "not readable" in next(line for line in text.splitlines() if "0ld0ld" in line)
    assert "profiles" not in text.replace(str(cache), "")


def test_json_is_the_same_for_one_and_for_all(cache: Path) -> None:
    entries = {entry["key"]: entry for entry in json.loads(succeed("list", "--json"))}
    assert set(entries) == {setting(6).key, setting(7).key, "0ld0ld"}
    entry = json.loads(succeed("show", setting(7).key, "--json"))
    assert entry == entries[setting(7).key]
    assert entry["call"] == CALL
    assert entry["verified"] == [{"plan": REQUEST.name, "mean": pytest.approx(0.02), "worst": 0.03, "seeds": [4, 5]}]
    assert [plan["anchors"] for plan in entry["plans"]] == [3]
    assert entry["bytes"] == sum(path.stat().st_size for path in (cache / setting(7).key).iterdir())
    assert entries["0ld0ld"]["readable"] is False


def test_show_takes_the_beginning_of_a_key(cache: Path) -> None:
    text = succeed("show", setting(7).key[:8])
    for part in ("SomePipeline", "Euler 4567", "guidance_scale", "weights7", "7 6 5 4 3 2 1", "2.00% mean"):
        assert part in text
    assert "cannot be read" in succeed("show", "0ld")


@pytest.mark.parametrize("command", ["show", "remove"])
def test_a_key_that_is_no_ones_is_one_line(command: str, cache: Path) -> None:
    result = invoke(command, "zzz")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "no measurement" in result.stderr
    assert "3 measurements" in invoke(command, "").stderr


def test_remove_asks(cache: Path) -> None:
    folder = cache / setting(6).key
    result = invoke("remove", setting(6).key, input="n\n")
    assert result.exit_code == 1
    assert "SomePipeline, 6 steps" in result.output
    assert MeasurementFolder(folder).measurement() is not None
    succeed("remove", setting(6).key, input="y\n")
    assert not folder.exists()
    assert f"removed {cache / '0ld0ld'}" in succeed("remove", "0ld0ld", "--yes")
    size = MeasurementFolder(cache / setting(7).key).size_bytes()
    told = json.loads(succeed("remove", setting(7).key, "--yes", "--json"))
    assert told == {"removed": setting(7).key, "bytes": size}
    assert "nothing is stored" in succeed("list")
    assert json.loads(succeed("list", "--json")) == []


def test_another_folder_can_be_named(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    assert str(other) in succeed("list", "--cache", str(other))


def test_a_damaged_plan_is_told_and_hides_nothing(cache: Path) -> None:
    next((cache / setting(7).key).glob("*.plan.json")).write_text("{")
    assert setting(7).key in succeed("list")
    assert "damaged" in succeed("show", setting(7).key)
