"""``soda-compile compare``: two plans side by side, as a table, as JSON and as a picture; and what shells complete."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from soda_compile.cli import app
from soda_compile.plans.actions import COMPUTE, REUSE
from soda_compile.plans.fitted_weights import FittedWeights
from soda_compile.plans.plan import Plan

NAMES = ("blocks.0.attn", "blocks.0.ff")


def plan_of(*rows: str) -> Plan:
    actions = tuple(tuple(COMPUTE if symbol == "C" else REUSE for symbol in row) for row in rows)
    return Plan("", NAMES, actions, flop_ratio=0.5)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    plans = {"a.json": plan_of("CrCrCC", "CCCCCC"), "b.json": plan_of("CCrrCr", "CCCCCC")}
    for name, plan in plans.items():
        plan.save(tmp_path / name)
    return [tmp_path / name for name in plans]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_where_plans_differ(paths: list[Path]) -> None:
    text = invoke(*paths).output
    assert "3 of 12 actions differ, in 1 regions, at steps 1-2, 5" in text
    found = json.loads(invoke(*paths, "--json").output)
    assert found["differences"] == {"steps": [1, 2, 5], "regions": ["blocks.0.attn"], "actions": 3, "total": 12}
    assert [each["actions: reuse"] for each in found["plans"].values()] == [2, 3]


def test_equal_plans(paths: list[Path]) -> None:
    Plan.load(paths[0]).save(paths[1])
    assert "every region does the same at every step" in invoke(*paths).output


def test_fitted_weights_are_told(paths: list[Path]) -> None:
    plan = Plan.load(paths[0])
    replace(plan, weights=(FittedWeights(1, 0, (0.5,)), FittedWeights(3, 0, (0.9,)))).save(paths[1])
    facts = json.loads(invoke(*paths, "--json").output)["plans"].values()
    assert [each.get("steps with fitted weights") for each in facts] == [None, 2]


def test_a_picture(paths: list[Path], tmp_path: Path) -> None:
    assert invoke(*paths, "--out", tmp_path / "both.png").exit_code == 0
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_refused(paths: list[Path], tmp_path: Path) -> None:
    Plan("", ("other",), ((COMPUTE,),)).save(tmp_path / "c.json")
    refused = {
        "one plan is for 2 regions and 6 steps, the other for 1 and 1": (paths[0], tmp_path / "c.json"),
        "give two": (paths[0], paths[0]),
        "give a .png": (*paths, "--out", tmp_path / "both.pdf"),
    }
    for expected, arguments in refused.items():
        result = invoke(*arguments)
        assert result.exit_code != 0
        assert expected in " ".join(result.output.split())


def test_shells_complete_commands() -> None:
    asked = {"_SODA_COMPILE_COMPLETE": "complete_bash", "COMP_WORDS": "soda-compile com", "COMP_CWORD": "1"}
    assert CliRunner().invoke(app, [], prog_name="soda-compile", env=asked).output.split() == ["compare"]
