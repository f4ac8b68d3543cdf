"""The README's examples run as written."""

import re
from pathlib import Path

import pytest
import torch
from tracing import graphs_as_they_are

import soda_compile

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("name", ["one line", "sharing", "pipeline", "other steps", "loop", "serving", "batching"])
def test_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = re.search(rf"<!-- example: {name} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SODA_COMPILE_CACHE", str(tmp_path / "cache"))
    if name != "loop":  # one of them by Inductor is enough
        graphs_as_they_are(monkeypatch)
    torch.compiler.reset()
    scope: dict = {"__name__": "readme"}
    exec(compile(code[1], f"README.md ({name})", "exec"), scope)
    if name == "one line":
        assert scope["images"].shape == (2, 8, 8, 1)
        (stored,) = tmp_path.glob("cache/*/*.plan.json")
        assert soda_compile.Plan.load(stored).flop_ratio <= 1 / 2.5
        return
    if name == "sharing":
        assert (tmp_path / "digits-20-steps" / "README.md").exists()
        assert list(tmp_path.glob("digits-20-steps/*.verified.json"))
        assert scope["more"].shape == scope["images"].shape == (2, 8, 8, 1)
        counted = soda_compile.stats(scope["other"])["transformer"]
        assert (counted["calls"], counted["misses"]) == (44, {})
        return
    if name == "serving":
        counted = soda_compile.stats(scope["pipe"])["transformer"]
        assert (counted["calls"], counted["misses"], counted["slot_bytes"]) == (40, {}, 0)
        return
    if name == "batching":
        assert scope["noise"].isfinite().all()
        counted = soda_compile.stats(scope["pipe"])["transformer"]
        assert (counted["calls"], counted["misses"]) == (3, {})
        return
    if name == "other steps":
        assert (scope["plan"].steps, scope["plan"].scheduler) == (30, "DPMSolverMultistepScheduler")
        counted = soda_compile.stats(scope["pipe"])["transformer"]
        assert (counted["calls"], counted["misses"]) == (30, {})
        return
    assert scope["plan"].flop_ratio <= 1 / 2.5
    if name == "pipeline":
        assert scope["images"].shape == (2, 8, 8, 1)
        assert (tmp_path / "plan.json").exists()
    else:
        original = scope["sample"](scope["model"], 0)
        error = (scope["image"] - original).norm() / original.norm()
        assert 0 < error < 0.3


def test_files_it_names_exist():
    root = Path(__file__).parents[2]
    for path in re.findall(r"(?:soda_compile|passes|benchmarks|docs)/[\w/]+\.\w+", README):
        assert (root / path).exists(), path
