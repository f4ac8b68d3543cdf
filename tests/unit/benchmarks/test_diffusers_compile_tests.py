"""The plugin under which tests of torch.compile run with this backend, on a small module of tests."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from benchmarks.diffusers_compile_tests import MODES, cell, save, table

TESTS = """
import pytest
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class TorchCompileTesterMixin:
    @torch.no_grad()
    def test_torch_compile_recompilation_and_graph_break(self):
        model = torch.compile(Model().eval(), fullgraph=True)
        with torch._dynamo.config.patch(error_on_recompile=True):
            model(torch.ones(1, 3, 8))
            model(torch.ones(1, 3, 8))

    @torch.no_grad()
    def test_torch_compile_repeated_blocks(self):
        torch.compiler.reset()
        model = Model().eval()
        for block in model.blocks:
            block.compile(fullgraph=True)
        with torch._dynamo.config.patch(recompile_limit=1):
            model(torch.ones(1, 3, 8))
            model(torch.ones(1, 3, 8))

    @torch.no_grad()
    def test_compile_on_different_shapes(self):
        torch.compiler.reset()
        model = torch.compile(Model().eval(), fullgraph=True, dynamic=True)
        for tokens in (3, 5, 7):
            with torch._dynamo.config.patch(error_on_recompile=True):
                model(torch.ones(1, tokens, 8))

    def test_compile_with_group_offloading(self):
        pytest.skip("no offloading here")

    def test_compile_works_with_aot(self):
        raise AssertionError("it is no test of torch.compile")


class TestModel(TorchCompileTesterMixin):
    pass


class TestElsewhere:
    def test_something_else(self):
        raise AssertionError("it is not of the mixin")
"""
WHOLE = "test_torch_compile_recompilation_and_graph_break"


def outcomes(folder: Path, mode: str, text: str = TESTS) -> dict[str, dict[str, Any]]:
    (folder / "test_fake.py").write_text(text)
    report = folder / "report.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "diffusers_compile_plugin", "--rootdir", str(folder)]
    command += ["--soda-mode", mode, "--soda-report", str(report), "-p", "no:cacheprovider", "test_fake.py"]
    paths = [str(ROOT), str(ROOT / "benchmarks")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "SODA_COMPILE_LOWERING": "eager"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert report.exists(), done.stdout + done.stderr
    return {row["test"]: row for row in json.loads(report.read_text())}


@pytest.fixture(scope="module")
def accelerated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return outcomes(tmp_path_factory.mktemp("accelerate"), "accelerate")


@pytest.mark.thorough
def test_tests_run_with_a_plan_for_what_they_compile(accelerated: dict[str, dict[str, Any]]) -> None:
    whole = accelerated[WHOLE]
    assert (whole["outcome"], whole["class"], whole["planned"]) == ("passed", "TestModel", 1), whole["reason"]
    assert (whole["regions"], whole["misses"]) == ({"compute": 2, "reuse": 2}, {})
    blocks = accelerated["test_torch_compile_repeated_blocks"]
    assert (blocks["outcome"], blocks["planned"]) == ("passed", 2), blocks["reason"]
    assert blocks["regions"] == {"compute": 2, "reuse": 2}
    shapes = accelerated["test_compile_on_different_shapes"]
    assert (shapes["outcome"], shapes["misses"], shapes["calls"]) == ("passed", {}, 3), shapes["reason"]


@pytest.mark.thorough
def test_tests_of_something_else_are_left_out(accelerated: dict[str, dict[str, Any]]) -> None:
    assert accelerated.keys() == {
        WHOLE,
        "test_torch_compile_repeated_blocks",
        "test_compile_on_different_shapes",
        "test_compile_with_group_offloading",
    }
    assert accelerated["test_compile_with_group_offloading"]["outcome"] == "skipped"


@pytest.mark.thorough
def test_failures_are_reported_with_their_reason(tmp_path: Path) -> None:
    broken = TESTS.replace("x = block(x)", "x = block(x); torch._dynamo.graph_break()")
    found = outcomes(tmp_path, "compute", broken)[WHOLE]
    assert found["outcome"] == "failed"
    assert "graph" in found["reason"]


def test_the_table_has_every_mode_and_keeps_what_is_not_run_again(tmp_path: Path) -> None:
    row = {"model": "flux", "lowering": "eager", "class": "TestFlux", "test": WHOLE, "seconds": 1.0}
    out = tmp_path / "found.json"
    for mode in MODES:
        save(out, [{**row, "mode": mode, "outcome": "passed", "reason": ""}])
    save(out, [{**row, "mode": "soda", "outcome": "failed", "reason": "Error: a | b"}])
    report = json.loads(out.read_text())
    assert [each["mode"] for each in report["rows"]] == sorted(MODES)
    assert "| flux: `Flux` | whole model | passed | failed: Error: a \\| b | passed | passed |" in table(report)
    assert out.with_suffix(".md").read_text() == table(report)
    skipped = {**row, "outcome": "skipped", "reason": "Skipped: not here"}
    assert cell(skipped) == "skipped: not here"
