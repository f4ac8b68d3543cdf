"""The commands export, info and run; subgraphs run in eager mode here."""

from pathlib import Path
from typing import Any

import package_tools as toy
import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from soda_compile.cli import app

pytestmark = pytest.mark.usefixtures("eager_subgraphs")

TARGET = """
import package_tools as toy

def named():
    return toy.Denoiser(), toy.inputs()

def placed():
    return toy.Denoiser(), tuple(toy.inputs().values())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("target.py").write_text(TARGET)
    toy.PLAN.save("plan.json")
    return tmp_path


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def succeed(*arguments: Any) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


@pytest.mark.parametrize("function", ["named", "placed"])
def test_a_package_is_made_shown_and_run(folder: Path, function: str) -> None:
    made = succeed("export", f"target.py:{function}", "--plan", "plan.json", "--out", "toy.soda.pt2")
    assert "wrote toy.soda.pt2 in" in made
    shown = succeed("info", "toy.soda.pt2")
    assert made.startswith(shown.rstrip())
    for text in (
        "Denoiser: ",
        "2 regions",
        f"plan         {toy.PLAN.digest}, 4 steps of Toy",
        "hidden_states float32[2, 4, 8], timestep float32[2]",
        "fixed        return_dict=True",
        "inside, once",
        "checksums verified",
        "blocks.0-1.ff (x2)  CCr1",
    ):
        assert text in shown, shown
    ran = succeed("run", "toy.soda.pt2", "--rounds", "2")
    assert "ms for 4 steps: " in ran
    assert "ms an anchor step, " in ran


def test_external_weights_are_given_to_run(folder: Path) -> None:
    succeed("export", "target.py:named", "--plan", "plan.json", "--out", "toy.soda.pt2", "--weights", "external")
    assert "external; load needs the checkpoint" in succeed("info", "toy.soda.pt2")
    save_file(toy.Denoiser().state_dict(), "model.safetensors")
    assert "loaded in" in succeed("run", "toy.soda.pt2", "--weights", "model.safetensors", "--rounds", "1")


def test_errors_are_one_line(folder: Path) -> None:
    Path("bad.soda.pt2").write_bytes(b"0" * 200)
    for arguments, reason in (
        (("info", "none.soda.pt2"), "none.soda.pt2: cannot read the package"),
        (("info", "bad.soda.pt2"), "bad.soda.pt2: no package of soda_compile.export"),
        (("run", "bad.soda.pt2"), "bad.soda.pt2: no package"),
        (("export", "target.py:named", "--plan", "none.json"), "none.json: cannot read the plan"),
        (("export", "target.py:named", "--plan", "plan.json", "--out", "a/b.pt2"), "there is no folder a"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2, result.output
        assert reason in result.stderr
        assert result.stderr.count("\n") == 1
