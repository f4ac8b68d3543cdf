"""The examples of an operator, a framework, a goal and a strategy in docs/extending.md do what the text says."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from documented import example, scope_of
from paths import ROOT
from plain_models import DitBlock, Listed, inputs
from planner_tables import make_profile, make_sensitivity
from tracing import graphs_as_they_are

import soda_compile
from soda_compile.errors import OptionError, PlanError

GENERATE = """
import torch
import soda_compile
from plain_models import Listed, TimmBlock, inputs

torch.manual_seed(0)
model = Listed(TimmBlock).eval()

def generate(seed):
    for step in range(20):
        model(**inputs(step, 20))
"""


def test_an_operator_is_one_line_of_the_table(tmp_path: Path):
    shutil.copytree(ROOT / "soda_compile", tmp_path / "soda_compile", ignore=shutil.ignore_patterns("__pycache__"))
    table = tmp_path / "soda_compile/plans/operators.py"
    head, end, rest = table.read_text().rpartition("\n)\n")
    table.write_text(head + "\n" + example("operator") + end + rest)
    path = os.pathsep.join([str(tmp_path), str(ROOT / "tests")])
    code = GENERATE + example("use operator")
    variables = {**os.environ, "PYTHONPATH": path, "SODA_COMPILE_LOWERING": "eager"}
    found = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "4 forecast4" in found.stdout


class Sampler:
    def start(self, steps: int) -> None:
        self.times = [1 - step / steps for step in range(steps)]

    def next(self) -> None: ...


class Pipeline:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net, self.sampler = Listed(DitBlock).eval(), Sampler()

    def generate(self, seed: int) -> None:
        self.sampler.start(5)
        for step in range(5):
            self.net(**inputs(step, 5))
            self.net(**inputs(step, 5))
            self.sampler.next()


def test_a_framework_is_followed(monkeypatch: pytest.MonkeyPatch):
    graphs_as_they_are(monkeypatch)
    torch._dynamo.reset()
    pipe = Pipeline()
    made = scope_of("use framework", pipe=pipe, **{k: v for k, v in scope_of("framework").items() if k != "__name__"})
    info = made["sensitivity"].info
    assert (info.steps, info.calls_per_step, info.scheduler) == (5, 2, "Sampler")
    assert info.timesteps == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert made["plan"].steps == 5
    assert vars(pipe.sampler).keys() == {"times"}, "the hook was left behind"


def test_a_goal_that_bounds_cost_needs_no_new_strategy():
    within = scope_of("goal")["within"]
    sensitivity = make_sensitivity(0, steps=14, regions=3, width=7)
    profile = make_profile(sensitivity)
    calls_us = 14 * sensitivity.info.calls_per_step * profile.full_us
    by_time = soda_compile.plan(sensitivity, latency_ms=calls_us / 2000, profile=profile)
    by_energy = within(sensitivity, profile, 350 * calls_us / 2e6)
    assert by_energy.actions == by_time.actions
    assert dict(by_energy.method)["joules"] == pytest.approx(350 * calls_us / 2e6)
    with pytest.raises(PlanError, match=r"EnergyGoal\(.*joules=1e-06.*\) is out of reach: the least cost is .* us"):
        within(sensitivity, profile, 1e-6)
    with pytest.raises(PlanError, match="joules is -1"):
        within(sensitivity, profile, -1)
    with pytest.raises(OptionError, match="joules needs measured costs"):
        within(sensitivity, None, 1.0)


def test_a_strategy_is_one_class():
    strategy = scope_of("strategy")["FirstSteps"]()
    made = soda_compile.plan(make_sensitivity(0, steps=6, width=5), anchors=3, strategy=strategy)
    assert made.anchors == (0, 1, 2)
    assert dict(made.method)["planner"] == "first steps"
    assert np.isfinite(made.predicted_error)
    with pytest.raises(OptionError, match="exactly one of anchors"):
        soda_compile.plan(make_sensitivity(0, steps=6, width=5), speedup=2.0, strategy=copy.copy(strategy))
