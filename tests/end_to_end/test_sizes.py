"""One compilation for all sizes: as few as plain torch.compile makes, and the same samples as at fixed sizes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from count_compilations import STEPS, generate, given_to_inductor
from eager_reference import EagerReference
from families import FAMILIES
from plain_models import REGIONS, DitBlock, Listed
from random_plans import random_plan
from sized_models import SIZED, VARIED
from thorough import gated
from torch import Tensor, nn
from tracing import eager_graphs

import soda_compile
from soda_compile.backend import attempt
from soda_compile.capture import normalisation


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each graph that was analysed kept its symbolic sizes."""
    seen: list[bool] = []
    analyse = attempt.analyse_graph

    def analysed(*inputs: Any, symbolic: bool = False) -> Any:
        seen.append(symbolic)
        return analyse(*inputs, symbolic=symbolic)

    monkeypatch.setattr(attempt, "analyse_graph", analysed)
    return seen


@pytest.fixture
def eager() -> Iterator[None]:
    with eager_graphs():
        yield


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    ("name", "kind", "dynamic"),
    gated(("dit", "batch", None), others=[("sd3", "text", True), ("sd3", "resolution", None)]),
)
def test_as_few_compilations_as_plain(name: str, kind: str, dynamic: bool | None, captures: list[bool]) -> None:
    sized, sizes, regions = SIZED[name], VARIED[kind][:3], FAMILIES[name].regions
    model = sized.build()
    plan = random_plan(1, tuple(regions), STEPS, compute=0.3)
    options = {"plan": plan, "on_miss": "error"}
    wanted = [EagerReference(model, regions, plan).run(sized.calls(size, STEPS)) for size in sizes]
    _, plain = generate(model, sized, sizes, dynamic)
    captures.clear()
    found, compiled = generate(model, sized, sizes, dynamic, **options)
    assert compiled <= plain
    assert len(captures) == compiled  # none for a size alone
    assert captures[-1]
    for mine, theirs in zip(found, wanted, strict=True):
        flat = [torch.cat([output.flatten() for output in outputs]) for outputs in theirs]
        torch.testing.assert_close(mine, flat, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_code_is_compiled_once_for_all_sizes() -> None:
    model, plan = listed()
    calls = [listed_calls(*size) for size in ((2, 9), (3, 16), (5, 12))]
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="soda", options={"plan": plan, "on_miss": "error"}, dynamic=True)
    with torch.no_grad(), given_to_inductor() as (codes, _):
        for generation in calls:
            with soda_compile.trajectory(model):
                found = torch.stack([compiled(**inputs) for inputs in generation])
    with torch.no_grad():
        reference = torch.compile(model, backend="soda", options={"plan": plan, "lowering": "eager"}, dynamic=False)
        torch._dynamo.reset()
        with soda_compile.trajectory(model):
            wanted = torch.stack([reference(**inputs) for inputs in calls[-1]])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert codes
    assert all(len(code.made) == 1 for code in codes)


def listed_calls(batch: int, tokens: int) -> list[dict[str, Tensor]]:
    return [{"x": torch.randn(batch, tokens, 4), "t": torch.rand(batch)} for _ in range(STEPS)]


def listed() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = Listed(DitBlock).eval()
    return model, random_plan(1, REGIONS, STEPS, compute=0.4)


def run_at(model: nn.Module, plan: Any, dynamic: bool, *sizes: tuple[int, int]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="soda", options={"plan": plan}, dynamic=dynamic)
    for size in sizes:
        with torch.no_grad(), soda_compile.trajectory(model):
            for call in listed_calls(*size):
                compiled(**call)


@pytest.mark.usefixtures("eager")
def test_what_serves_many_sizes_is_counted_once() -> None:
    model, plan = listed()
    run_at(model, plan, True, (2, 9), (3, 16), (5, 12))
    counted = soda_compile.stats(model)["model"]
    assert (counted["compilations"], counted["misses"]) == (1, {})


@pytest.mark.usefixtures("eager")
def test_fixed_sizes_serve_where_symbolic_ones_fail(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also for a plan that has fitted before, whose graphs that cannot be captured run without it otherwise."""

    def fail(*inputs: Any) -> Any:
        raise RuntimeError("no such thing")

    model, plan = listed()
    run_at(model, plan, False, (2, 9))
    monkeypatch.setattr(normalisation, "export_symbolic", fail)
    run_at(model, plan, True, (3, 9), (4, 9))
    counted = soda_compile.stats(model)["model"]
    assert (counted["calls"], counted["misses"]) == (3 * STEPS, {})
    assert "symbolic sizes failed: CaptureError" in caplog.text
