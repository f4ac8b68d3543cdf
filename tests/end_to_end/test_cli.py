"""The console script: what it prints and writes, and one clear line for everything that can go wrong."""

import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
from level_tables import level_sensitivity
from tracing import graphs_as_they_are
from typer.testing import CliRunner

import soda_compile
from soda_compile.cli import app
from soda_compile.planner import AnchorSchedule, PaperSchedule, Unified, explain, plan
from soda_compile.plans.operators import OPERATORS
from soda_compile.plans.plan import Plan
from soda_compile.plans.profile import PROFILED, Profile
from soda_compile.plans.sensitivity import METRICS, Sensitivity, SensitivityInfo

STEPS, REGIONS, WIDTH = 8, ("blocks.0.attn", "blocks.0.ff"), 6

TARGET = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ff = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))

    def forward(self, x, scale):
        return x + scale * self.ff(x)

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x, scale=1.0):
        for block in self.blocks:
            x = block(x, scale)
        return x

class Broken(Residual):
    def forward(self, x):
        for block in self.blocks:
            torch._dynamo.graph_break()
            x = block(x, 1.0)
        return x

def named():
    return Residual(), {"x": torch.ones(2, 3, 4)}

def placed():
    return Residual(), (torch.ones(2, 3, 4), 0.5)

def breaks():
    return Broken(), (torch.ones(2, 3, 4),)

def model_only():
    return Residual()

def swapped():
    return {"x": 1}, Residual()

def text():
    return Residual(), "x"

def raises():
    raise ValueError("no weights here")

constant = 3
"""


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()  # Dynamo compiles one function for a few models only


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "target.py").write_text(TARGET)
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "damaged.json").write_text("{")
    sensitivity().save(tmp_path / "s.safetensors")
    return tmp_path


def sensitivity():
    rng = np.random.default_rng(0)
    shapes = {operator.name: (STEPS, 2, *operator.shape(WIDTH)) for operator in OPERATORS}
    tables = {f"{m}.{o}": rng.random(shapes[o]).astype(np.float32) for m in METRICS for o in shapes}
    info = SensitivityInfo("abc", REGIONS, STEPS, WIDTH, 1, 4, (0,), scheduler="DDIMScheduler", guidance=1.5)
    return Sensitivity(info, tables, tables, np.linspace(2, 1, STEPS), np.array([3.0, 6.0]), 10.0)


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def succeed(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("place", ["target.py", "target"])
@pytest.mark.parametrize("function", ["named", "placed"])
def test_inspect_takes_files_and_modules_and_both_kinds_of_inputs(folder, place, function):
    text = succeed("inspect", f"{place}:{function}")
    sys.modules.pop("target", None)
    assert text.startswith("Residual  ")
    assert "mlp  float32[2, 3, 4] 96 B" in text
    assert "2 regions hold 1.54 kFLOP of 1.54 kFLOP (100.0%); one copy of all cuts takes 192 B" in " ".join(
        text.split()
    )


def test_inspect_the_digits():
    pytest.importorskip("diffusers")
    text = succeed("inspect", "soda_compile.digits.example:example")
    assert "transformer_blocks.0-5 (x6)" in text
    assert "norm1.linear" in text
    assert "conditioning: it does not depend on the residual stream" in text
    assert "12 regions hold" in text


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("target.py", "module:function"),
        ("nowhere.nothing:f", "nowhere.nothing: ModuleNotFoundError"),
        ("absent.py:f", "no file absent.py"),
        ("syntax.py:f", "syntax.py: SyntaxError"),
        ("target.py:absent", "no function 'absent'"),
        ("target.py:constant", "no function 'constant'"),
        ("target.py:model_only", "returned Residual"),
        ("target.py:swapped", "returned (dict, Residual)"),
        ("target.py:text", "returned (Residual, str)"),
        ("target.py:raises", "ValueError: no weights here"),
        ("target.py:breaks", "Broken cannot be captured as one graph"),
    ],
)
def test_a_bad_target_is_one_line(folder, target, named):
    assert_one_line(invoke("inspect", target), named)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["plan", "s.safetensors"], "exactly one of anchors and speedup"),
        (["plan", "s.safetensors", "--anchors", 3, "--speedup", 2], "exactly one of anchors and speedup"),
        (["plan", "s.safetensors", "--anchors", 3, "--pruning", "drift"], "exactly one of speedup and latency_ms"),
        (["plan", "s.safetensors", "--speedup", 2, "--pruning", "beauty"], "score 'beauty'"),
        (["plan", "s.safetensors", "--latency-ms", 2], "latency_ms needs measured costs"),
        (["plan", "s.safetensors", "--speedup", 2, "--profile", "damaged.json"], "damaged.json"),
        (["profile", "target.py:named", "--pruning", "beauty"], "score 'beauty'"),
        (["profile", "target.py:named", "--out", "absent/p.json"], "no folder absent"),
        (["profile", "target.py:raises"], "ValueError: no weights here"),
        (["plan", "s.safetensors", "--anchors", 9], "anchors is 9"),
        (["plan", "s.safetensors", "--speedup", 50], "speedup of 50"),
        (["plan", "s.safetensors", "--anchors", 3, "--operator", "guess"], "'guess'"),
        (["plan", "s.safetensors", "--anchors", 3, "--objective", "beauty"], "'beauty'"),
        (["plan", "s.safetensors", "--anchors", 3, "--operator", "reuse", "--paper"], "paper"),
        (["plan", "s.safetensors", "--anchors", 3, "--slots", "all"], "slots 'all' is not known"),
        (["plan", "s.safetensors", "--speedup", 2, "--slots", "stack", "--unified"], "leave out --unified"),
        (["plan", "s.safetensors", "--anchors", 3, "--out", "absent/plan.json"], "no folder absent"),
        (["plan", "absent.safetensors", "--anchors", 3], "absent.safetensors"),
        (["plan", "target.py", "--anchors", 3], "target.py"),
        (["show", "absent.json"], "absent.json"),
        (["show", "damaged.json"], "damaged.json"),
        (["demo", "--out", "target.py"], "cannot make the folder target.py"),
        (["demo", "--speedups", 2, 2], "must differ"),
        (["demo", "--seed", 1_000_000], "seed is 1000000"),
    ],
)
def test_what_cannot_be_done_is_one_line(folder, arguments, named):
    assert_one_line(invoke(*arguments), named)


def assert_one_line(result, named):
    assert result.exit_code == 2
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("soda-compile: ")
    assert named in line


def test_an_unexpected_error_keeps_its_traceback(folder, monkeypatch):
    monkeypatch.setattr("soda_compile.cli.planning.make_plan", lambda *_, **__: 1 / 0)
    assert isinstance(invoke("plan", "s.safetensors", "--anchors", 3).exception, ZeroDivisionError)


def test_plan_prints_the_grid_and_writes_the_plan(folder):
    text = succeed("plan", "s.safetensors", "--speedup", 2, "--out", "p.json")
    made = Plan.load("p.json")
    assert made == plan(sensitivity(), speedup=2.0)
    assert made.grid() in text
    assert "wrote p.json" in text


def test_plan_passes_every_option_on(folder):
    for name, options, strategy in (
        ("cosine", {"operator": "forecast2", "objective": "cosine"}, AnchorSchedule("forecast2", "cosine")),
        ("unweighted", {"operator": "auto", "step_weights": False}, AnchorSchedule("auto")),
        ("stack", {"slots": "stack"}, AnchorSchedule(slots="stack")),
        ("worst", {"worst": True}, AnchorSchedule(over_samples="worst")),
        ("unified", {"unified": True}, Unified()),
        ("paper", {"paper": True}, PaperSchedule()),
    ):
        flags = {key: value for key, value in options.items() if not isinstance(value, bool)}
        words = [word for key, value in flags.items() for word in (f"--{key}", value)]
        words += [f"--{key}" for key in ("paper", "unified", "worst") if key in options]
        words += ["--no-step-weights"] * ("step_weights" in options)
        goal = {"speedup": 2.0} if "unified" in options else {"anchors": 3}
        words += [word for key, value in goal.items() for word in (f"--{key}", value)]
        succeed("plan", "s.safetensors", *words, "--out", f"{name}.json")
        assert Plan.load(f"{name}.json") == plan(sensitivity(), strategy=strategy, **goal)


def test_plan_for_other_steps_says_what_it_is_derived_from(folder):
    scheduler = pytest.importorskip("diffusers").DDIMScheduler(timestep_spacing="trailing")
    from soda_compile.integrations.diffusers.noise_levels import noise_levels
    from soda_compile.integrations.diffusers.scheduler_hook import scheduler_config, scheduler_digest, timesteps_of

    scheduler.set_timesteps(20)
    known = {"scheduler_config": scheduler_config(scheduler), "scheduler_digest": scheduler_digest(scheduler)}
    known |= {"timesteps": tuple(timesteps_of(scheduler)), "scheduler": "DDIMScheduler"}
    measured = level_sensitivity(noise_levels(scheduler), **known)
    measured.save("levels.safetensors")
    text = succeed("plan", "levels.safetensors", "--steps", 10, "--speedup", 1.5, "--out", "p.json")
    assert "10 steps derived from 20: 100% of the entries were measured" in text
    assert Plan.load("p.json") == soda_compile.plan(measured, steps=10, speedup=1.5)
    assert_one_line(
        invoke("plan", "levels.safetensors", "--steps", 2, "--speedup", 2), "calibrate with max_interval of at least"
    )


def test_plan_by_a_profile_says_what_it_takes(folder):
    measured = sensitivity()
    cost_us = np.full((2, len(PROFILED)), np.nan)
    cost_us[:, :4] = [[60, 0, 1, 2], [80, 0, 1, 2]]
    profile = Profile("abc", REGIONS, "a device", "key", 150.0, 10.0, cost_us, np.array([8.0, 8.0]))
    profile.save("p.json")
    options = ["--speedup", 2, "--profile", "p.json", "--memory-bytes", 32, "--unified"]
    text = succeed("plan", "s.safetensors", *options, "--out", "plan.json")
    made = plan(measured, speedup=2.0, profile=profile, memory_bytes=32, strategy=Unified())
    assert Plan.load("plan.json") == made
    assert explain(made, measured, profile) in text
    assert "of 1.2 ms" in text


def test_profile_prints_the_costs_and_keeps_them(folder, monkeypatch):
    monkeypatch.setenv("SODA_COMPILE_CACHE", str(folder / "cache"))
    graphs_as_they_are(monkeypatch)
    monkeypatch.setattr("soda_compile.measure.profiling.NOISY", float("inf"))
    text = succeed("profile", "target.py:named", "--rounds", 1, "--out", "p.json")
    kept = Profile.load("p.json")
    assert (folder / "cache" / "profiles" / f"{kept.key}.json").exists()
    assert kept.regions == ("blocks.0.ff", "blocks.1.ff")
    assert "blocks.0-1.ff (x2): compute " in text
    assert f"{kept.full_us:.4g} us a call" in text
    assert succeed("profile", "target.py:named", "--rounds", 1).splitlines()[:3] == text.splitlines()[:3]


def test_show_prints_the_plan_and_what_it_was_made_for(folder):
    made = plan(sensitivity(), anchors=3)
    made.save("p.json")
    text = succeed("show", "p.json")
    assert made.grid() in text
    assert "DDIMScheduler, guidance 1.5" in text
    assert "operator forecast1" in text


def test_a_missing_extra_is_named_with_the_command_that_installs_it(folder, monkeypatch):
    pytest.importorskip("diffusers")
    drawing = ("soda_compile.demo.run", "soda_compile.demo.figure", "soda_compile.plans.figure_file", "matplotlib")
    for name in list(sys.modules):  # whatever an earlier test drew, here matplotlib was never imported
        if name.startswith(drawing):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert_one_line(invoke("demo"), "the demo needs matplotlib: pip install 'soda-compile[demo]'")
    assert not (folder / "soda-demo").exists()


def test_the_demo_prints_its_table_and_writes_its_files(folder, monkeypatch):
    pytest.importorskip("diffusers")
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    from soda_compile.demo import run as demo_run
    from soda_compile.demo.report import COLUMNS

    monkeypatch.setattr("soda_compile.demo.measure.STEPS", 8)
    graphs_as_they_are(monkeypatch)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # where no backend is named
    options = ["--samples", 3, "--generations", 1, "--rounds", 1, "--seed", 5, "--speedups", 1.5, 3]
    outcomes = []
    run = demo_run.run
    monkeypatch.setattr(demo_run, "run", lambda settings: outcomes.append(run(settings)) or outcomes[0])
    text = succeed("demo", "--out", "here/demo", *options)
    monkeypatch.setattr(demo_run, "run", lambda settings: outcomes[0])
    value = json.loads(succeed("demo", "--json"))

    out = folder / "here" / "demo"
    assert {path.name for path in out.iterdir()} == {
        *("digits.png", "sensitivity.safetensors", "plan_1.5x.json", "plan_3x.json")
    }
    assert all(f"wrote here/demo/{path.name}" in text for path in out.iterdir())
    picture = imread(out / "digits.png")
    assert min(picture.shape[:2]) > 400
    assert len(np.unique(picture[..., 0])) > 16
    assert Sensitivity.load(out / "sensitivity.safetensors").info.steps == 8

    lines = text.splitlines()
    heading = " ".join(lines[:6])
    assert all(word in heading for column in COLUMNS for word in column.split())
    names = ("eager", "torch.compile", "soda 1.5x", "soda 3x")
    starts = {name: next(line for line in lines if line.strip().startswith(f"{name}  ")) for name in names}
    methods = {name: line.strip().removeprefix(name).split() for name, line in starts.items()}
    assert all(len(cells) == len(COLUMNS) - 1 for cells in methods.values())
    assert methods["torch.compile"][1] == "1.00"
    for name in ("soda 1.5x", "soda 3x"):
        stored = Plan.load(out / f"plan_{name.split()[1]}.json")
        assert methods[name][2] == f"{stored.flop_ratio:.3f}"
        assert stored.flop_ratio * float(name.split()[1][:-1]) <= 1
    errors = {name: float(cells[3].rstrip("%")) for name, cells in methods.items() if name != "eager"}
    assert errors["torch.compile"] < 0.1 < errors["soda 3x"]
    assert {path.rsplit("/")[-1] for path in value["wrote"]} == {path.name for path in out.iterdir()}
    assert [row["method"] for row in value["methods"]] == list(names)
    for row in value["methods"]:
        assert methods[row["method"]][1] == f"{row['latency_ratio']:.2f}"
        assert methods[row["method"]][2] == f"{row['flop_ratio']:.3f}"
    assert value["settings"]["seed"] == 5
    assert "seed 5" in text
    assert "1 interleaved round" in text
    assert "numeric floor" in text
