"""What the README, the pages of the site and the notebooks show runs as written, and prints what they say."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

import package_tools
import pages
import torch
from paths import ROOT
from thorough import gated
from tracing import graphs_as_they_are

import soda_compile
from soda_compile.acceleration.beside import THREAD

Scope = dict[str, Any]
NAMES = [str(page.relative_to(ROOT)) for page in (*pages.PAGES, *pages.NOTEBOOKS) if any(pages.blocks(page))]
INDUCTOR = "docs/howto/own_loops.md"  # one of them is enough


@pytest.mark.parametrize("name", gated("README.md", others=NAMES))
def test_a_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SODA_COMPILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("COLUMNS", "120")  # as wide as the pages show it, whatever the terminal
    if name != INDUCTOR:
        graphs_as_they_are(monkeypatch)
        monkeypatch.setattr("soda_compile.acceleration.sampling._by_inductor", nullcontext)
    monkeypatch.setattr("soda_compile.acceleration.trying.TRIED", 1)  # so many generations, instead of four
    torch.compiler.reset()
    with package_tools.eager_subgraphs():
        scope = pages.run(ROOT / name)
    if check := CHECKS.get(name):
        check(scope)


def _counts(model: Any) -> tuple[int, dict[str, int]]:
    (counted,) = soda_compile.stats(model).values()
    return counted["calls"], counted["misses"]


def _readme(scope: Scope) -> None:
    assert scope["images"].shape == (2, 8, 8, 1)
    stored = {"-tried-" in path.name: soda_compile.Plan.load(path) for path in Path("cache").glob("*/*.plan.json")}
    assert set(stored) == {False, True}
    assert all(plan.flop_ratio <= 1 / 2.5 for plan in stored.values())
    sample, original = scope["sample"], scope["sample"](scope["model"], 0)
    torch.testing.assert_close(scope["image"], original, rtol=1e-4, atol=1e-4)  # the first generation is as it was
    for seed in range(9):
        sample(scope["fast"], seed)
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join()
    assert 0 < (sample(scope["fast"], 0) - original).norm() / original.norm() < 0.3


def _pipelines(scope: Scope) -> None:
    assert scope["plan"].flop_ratio <= 1 / 2.5
    assert scope["images"].shape == (2, 8, 8, 1)
    assert soda_compile.Plan.load("plan.json") == scope["plan"]


def _own_loops(scope: Scope) -> None:
    original = scope["sample"](scope["model"], 0)
    assert 0 < (scope["image"] - original).norm() / original.norm() < 0.3


def _serving(scope: Scope) -> None:
    assert [image.shape for image in scope["images"]] == [(2, 8, 8, 1)] * 2
    assert not torch.equal(scope["one"], scope["other"])
    assert scope["noise"].isfinite().all()
    calls, misses = _counts(scope["model"])
    assert (calls, misses) == (60 + 20 + 3, {})


def _sharing(scope: Scope) -> None:
    assert list(Path("digits-20-steps").glob("*.verified.json"))
    assert scope["more"].shape == scope["images"].shape == (2, 8, 8, 1)
    assert _counts(scope["other"]) == (44, {})


def _other_settings(scope: Scope) -> None:
    assert (scope["plan"].steps, scope["plan"].scheduler) == (30, "DPMSolverMultistepScheduler")
    assert _counts(scope["pipe"]) == (30, {})


def _packages(scope: Scope) -> None:
    assert scope["images"].shape == (2, 8, 8, 1)
    assert scope["pipe"].transformer is scope["denoiser"]


def _notebook_digits(scope: Scope) -> None:
    assert scope["original"].shape == scope["accelerated"].shape == (5, 8, 8, 1)
    assert 0 < scope["difference"] < 0.3
    assert _counts(scope["pipe"])[1] == {}


def _notebook_own_loop(scope: Scope) -> None:
    assert 0 < scope["difference"] < 0.3
    assert _counts(scope["fast"]) == (20, {})


CHECKS: dict[str, Callable[[Scope], None]] = {
    "README.md": _readme,
    "docs/howto/pipelines.md": _pipelines,
    "docs/howto/own_loops.md": _own_loops,
    "docs/howto/serving.md": _serving,
    "docs/howto/sharing.md": _sharing,
    "docs/howto/other_settings.md": _other_settings,
    "docs/howto/packages.md": _packages,
    "examples/notebooks/digits.ipynb": _notebook_digits,
    "examples/notebooks/own_loop.ipynb": _notebook_own_loop,
}


def test_every_how_to_page_and_notebook_is_run() -> None:
    assert {f"docs/howto/{path.name}" for path in (ROOT / "docs/howto").glob("*.md")} <= set(NAMES)
    assert {name for name in NAMES if name.endswith(".ipynb")} >= {
        f"examples/notebooks/{n}.ipynb" for n in ("digits", "own_loop")
    }
