"""``--json`` of every command: one value on standard output, the same facts as the text."""

import json
import re
from pathlib import Path
from typing import Any

import package_tools as toy
import pytest
import torch
from planner_tables import make_profile, make_sensitivity
from tracing import graphs_as_they_are
from typer.main import get_command
from typer.testing import CliRunner

from soda_compile.cli import app
from soda_compile.plans.plan import Plan
from soda_compile.plans.profile import Profile

TABLE = make_sensitivity()
TARGET = """
import package_tools as toy

def named():
    return toy.Denoiser(), toy.inputs()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SODA_COMPILE_CACHE", str(tmp_path / "cache"))
    graphs_as_they_are(monkeypatch)
    torch.compiler.reset()
    Path("target.py").write_text(TARGET)
    TABLE.save("table.safetensors")
    make_profile(TABLE).save("profile.json")
    return tmp_path


def value(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))


def test_every_command_that_prints_a_result_takes_it() -> None:
    def commands(group: Any) -> dict[str, Any]:
        inner = {name: commands(each) if hasattr(each, "commands") else each for name, each in group.commands.items()}
        flat = {name: each for name, each in inner.items() if not isinstance(each, dict)}
        return flat | {
            f"{name} {key}": v for name, each in inner.items() if isinstance(each, dict) for key, v in each.items()
        }

    found = commands(get_command(app))
    lacking = {name for name, command in found.items() if all("--json" not in each.opts for each in command.params)}
    assert len(found) > 12
    assert not lacking


def test_a_plan_is_printed_as_its_file_holds_it() -> None:
    made = value("plan", "table.safetensors", "--anchors", 3, "--out", "plan.json")
    stored = json.loads(Path("plan.json").read_text())
    assert made == {"plan": stored, "derived": None, "wrote": ["plan.json"]}
    assert value("show", "plan.json") == stored
    assert Plan.from_json(json.dumps(made["plan"])) == Plan.load("plan.json")
    explained = value("plan", "table.safetensors", "--speedup", 1.5, "--profile", "profile.json")
    assert explained["wrote"] == []


def test_two_plans_and_a_report() -> None:
    for anchors in (2, 3):
        value("plan", "table.safetensors", "--anchors", anchors, "--out", f"{anchors}.json")
    found = value("compare", "2.json", "3.json")
    assert set(found["plans"]) == {"2.json", "3.json"}
    assert found["differences"]["total"] == 12
    assert value("compare", "2.json", "3.json", "--out", "both.png")["wrote"] == ["both.png"]
    made = value("report", "table.safetensors", "2.json", "--out", "r.html")
    assert made == {"model": "abc", "plan": Plan.load("2.json").digest, "wrote": ["r.html"]}


def test_a_model_and_its_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soda_compile.measure.profiling.NOISY", float("inf"))
    found = value("inspect", "target.py:named", "--why")
    names = [region["name"] for region in found["regions"]]
    assert names == list(toy.PLAN.regions)
    assert 0 < sum(region["flops"] for region in found["regions"]) <= found["flops"]
    assert {note["subject"] for note in found["pruning"]} <= set(names)
    profiled = value("profile", "target.py:named", "--rounds", 1, "--out", "p.json")
    assert profiled["profile"] == json.loads(Path("p.json").read_text())
    assert Profile.load(profiled["kept"]).regions == tuple(names)


def test_a_package() -> None:
    toy.PLAN.save("plan.json")
    with toy.eager_subgraphs():
        made = value("export", "target.py:named", "--plan", "plan.json", "--out", "toy.soda.pt2")
        shown = value("info", "toy.soda.pt2")
        assert {key: made[key] for key in shown} == shown
        assert made["wrote"] == ["toy.soda.pt2"]
        assert Plan.from_json(json.dumps(shown["plan"])) == toy.PLAN
        assert shown["programs"][0]["inputs"]["timestep"] == "float32[2]"
        timed = value("run", "toy.soda.pt2", "--rounds", 1)
    (program,) = timed["programs"]
    assert timed["steps"] == toy.PLAN.steps
    assert set(program["step_s"]) == {"an anchor step", "another step"}


def test_what_goes_wrong_leaves_standard_output_empty() -> None:
    result = CliRunner().invoke(app, ["show", "absent.json", "--json"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.match("soda-compile: .*absent.json", result.stderr)
