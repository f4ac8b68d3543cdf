"""``soda-compile report``: on files, on the folder of a measurement, and what it refuses."""

from pathlib import Path

import pytest
from planner_tables import make_sensitivity
from typer.testing import CliRunner, Result

from soda_compile.acceleration.measurement_folder import Measurement, MeasurementFolder, Request, Verified
from soda_compile.acceleration.setting import Setting
from soda_compile.cli import app
from soda_compile.planner import AnchorSchedule, Goal
from soda_compile.planner import plan as make_plan

REQUEST = Request(Goal(anchors=3), AnchorSchedule())
TABLE = make_sensitivity()
PLAN = make_plan(TABLE, REQUEST.goal)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    TABLE.save(tmp_path / "table.safetensors")
    PLAN.save(tmp_path / "plan.json")
    return tmp_path / "table.safetensors", tmp_path / "plan.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A measurement of two denoisers, one of whose plans was verified."""
    names = {"transformer": "a", "transformer_2": "b"}
    setting = Setting("SomePipeline", names, names, "Euler", 6, tuple(range(6, 0, -1)), {})
    made = Measurement(setting, {"transformer": TABLE, "transformer_2": make_sensitivity(1)})
    folder = MeasurementFolder(tmp_path / "measured")
    folder.save(made)
    folder.save_plans(REQUEST, made.name, {name: make_plan(made.sensitivities[name], REQUEST.goal) for name in names})
    folder.save_verified(made.name, Verified(REQUEST.name, (4, 5), (0.01, 0.03)))
    return folder.path


@pytest.mark.parametrize(("suffix", "begins"), [("html", b"<!doctype html>"), ("png", b"\x89PNG")])
def test_a_page_or_a_picture(files: tuple[Path, Path], tmp_path: Path, suffix: str, begins: bytes) -> None:
    out = tmp_path / f"report.{suffix}"
    assert invoke(*files, "--out", out).exit_code == 0
    assert out.read_bytes().startswith(begins)


def test_a_folder_tells_what_was_verified(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    result = invoke(folder, "--component", "transformer", "--out", out)
    assert result.exit_code == 0, result.output
    text = out.read_text()
    assert REQUEST.name in text
    assert "3.00%" in text
    assert PLAN.digest in text  # the plan that was verified is the one that is shown


def test_what_is_refused(files: tuple[Path, Path], folder: Path, tmp_path: Path) -> None:
    table, plan = files
    make_plan(make_sensitivity(steps=5), Goal(anchors=3)).save(tmp_path / "other.json")
    refused = {
        "end it with .html or .png": (table, "--out", tmp_path / "report.pdf"),
        "there is no folder": (table, "--out", tmp_path / "none" / "report.html"),
        "compared in pairs": (table, "--original", tmp_path),
        "choose one with --component": (folder,),
        "is no folder; leave it out": (table, "--component", "transformer"),
        "holds no measurement": (tmp_path,),
        "2 regions and 5 steps, but": (table, tmp_path / "other.json"),
        "truncated or damaged": (plan,),
    }
    for expected, arguments in refused.items():
        result = invoke(*arguments, *(() if "--out" in arguments else ("--out", tmp_path / "report.html")))
        assert result.exit_code != 0, expected
        assert expected in " ".join(result.output.split()), result.output
    assert not (tmp_path / "report.html").exists()
