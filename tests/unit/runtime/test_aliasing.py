"""What a call returns is the caller's, and what the caller passes is not kept: both may be written to afterwards."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES
from plain_models import DitBlock, Listed
from random_plans import random_plan
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

import soda_compile
from soda_compile.runtime import cuda_graphs

STEPS = 6


pytestmark = pytest.mark.usefixtures("eager_throughout")


class Features(Listed):
    """Returns kept values, views of them, an input, a view of one, and what conditions the blocks."""

    def forward(self, x: Tensor, t: Tensor) -> Any:
        c = self.time(t[:, None])
        h = self.embed(x) + c[:, None]
        kept = []
        for block in self.blocks:
            branch = block.attn(block.norm1(h))
            h = h + branch
            h = h + block.mlp(block.norm2(h))
            kept.append(branch)
        return self.head(h), kept, kept[0].transpose(1, 2), x, x[:, 1:], c


def scribble(value: Any) -> None:
    for leaf in tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            leaf.fill_(1)


def outputs(
    model: nn.Module, compiled: Callable[..., Any], calls: list[dict[str, Any]], *, write: bool
) -> list[list[Any]]:
    """All outputs of a generation; the caller writes over outputs and inputs after each call, or leaves them alone."""
    found = []
    with torch.no_grad(), soda_compile.trajectory(model):
        for call in calls:
            mine = tree_map_only(torch.Tensor, torch.clone, call)
            result = compiled(**mine)
            found.append([leaf.clone() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)])
            if write:
                scribble(result)
                scribble(mine)
    return found


def assert_equal(one: list[list[Any]], other: list[list[Any]]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        for mine, wanted in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=0, atol=0)


def compiled_with(model: nn.Module, plan: Any, **options: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(model, backend="soda", options={"plan": plan, **options}, fullgraph=True, dynamic=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("rows", "conditioning"), [(0, "step"), (1, "step"), (1, "trajectory"), (2, "trajectory")])
def test_features_that_a_model_returns(rows: int, conditioning: str):
    torch.manual_seed(0)
    model = Features(DitBlock).eval().requires_grad_(False)
    start, direction = torch.randn(2, 2, 9, 4)
    calls = [{"x": start + direction * s / STEPS, "t": torch.full((2,), 1 - s / STEPS)} for s in range(STEPS)]
    plan = random_plan(rows, soda_compile.inspect(model, **calls[0]).region_names, STEPS, compute=0.3)
    compiled = compiled_with(model, plan, conditioning=conditioning)
    clean = [outputs(model, compiled, calls, write=False) for _ in range(2)]
    for _ in range(2):
        assert_equal(outputs(model, compiled, calls, write=True), clean[1])
    assert_equal(outputs(model, compiled, calls, write=False), clean[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_all_families(name: str):
    model, calls = FAMILIES[name].build(), list(FAMILIES[name].trajectory(STEPS))
    plan = random_plan(1, tuple(FAMILIES[name].regions), STEPS, compute=0.3)
    compiled = compiled_with(model, plan)
    clean = outputs(model, compiled, calls, write=False)
    assert_equal(outputs(model, compiled, calls, write=True), clean)


def test_calls_without_the_plan(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    model = Features(DitBlock).eval().requires_grad_(False)
    call = {"x": torch.randn(2, 9, 4), "t": torch.ones(2)}
    plan = random_plan(0, soda_compile.inspect(model, **call).region_names, STEPS)
    compiled = compiled_with(model, plan)
    calls = [call] * (STEPS + 3)
    clean = outputs(model, compiled, calls, write=False)
    assert_equal(outputs(model, compiled, calls, write=True), clean)


def test_features_under_recorded_steps(monkeypatch: pytest.MonkeyPatch):
    """The capturer keeps addresses as CUDA graphs do."""

    class Again:
        lock = threading.Lock()

        def capture(self, body: Callable[[], None]) -> Callable[[], None]:
            body()
            return lambda: None

    torch.manual_seed(0)
    model = Features(DitBlock).eval().requires_grad_(False)
    call = {"x": torch.randn(2, 9, 4), "t": torch.ones(2)}
    plan = random_plan(0, soda_compile.inspect(model, **call).region_names, STEPS)
    clean = outputs(model, compiled_with(model, plan), [call] * STEPS, write=False)
    monkeypatch.setattr(cuda_graphs, "capturer_for", lambda device: Again())
    compiled = compiled_with(model, plan, mode="reduce-overhead")
    for _ in range(2):  # with equal inputs a graph that is not run again leaves what it should
        assert_equal(outputs(model, compiled, [call] * STEPS, write=True), clean)
