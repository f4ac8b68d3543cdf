"""Sizes that Dynamo makes symbolic: it compiles once, and the plan is followed at every size."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from eager_reference import EagerReference
from families import Region
from plain_models import REGIONS, DitBlock, InPlaceBlock, Listed
from random_plans import random_plan
from thorough import gated
from torch import Tensor, nn

import soda_compile
from soda_compile.plans.plan import Plan
from soda_compile.plans.pruning import Pruning

STEPS = 5
SIZES = ((2, 9), (3, 16), (2, 9), (5, 12))  # samples and tokens


pytestmark = pytest.mark.usefixtures("eager")


class Grid(Listed):
    """Takes the sizes of its grid as numbers, and gives the sample back with it unfolded."""

    def forward(self, x: Tensor, t: Tensor, rows: int, columns: int) -> Tensor:  # type: ignore[override]
        place = torch.arange(rows, dtype=x.dtype)[:, None] + torch.arange(columns, dtype=x.dtype)
        return super().forward(x + place.flatten()[None, :, None] / 10, t).unflatten(1, (rows, columns))


class Norms(nn.Module):
    """Nothing in it can be planned."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.norm(x) * t[:, None, None]


def model_of(kind: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return kind(*arguments).eval()


def calls(batch: int, tokens: int, grid: bool = False) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(batch * tokens)
    start, direction = torch.randn(2, batch, tokens, 4, generator=generator)
    sizes = {"rows": 3, "columns": tokens // 3} if grid else {}
    return [
        {"x": start + direction * step / STEPS, "t": torch.full((batch,), 1 - step / STEPS), **sizes}
        for step in range(STEPS)
    ]


def generate(model: nn.Module, compiled: Callable[..., Any], inputs: list[dict[str, Any]]) -> Tensor:
    with torch.no_grad(), soda_compile.trajectory(model):
        return torch.stack([compiled(**call) for call in inputs])


def by_hooks(model: nn.Module, plan: Plan, inputs: list[dict[str, Any]]) -> Tensor:
    """What hooks in eager mode make of the plan."""
    regions = {name: Region((f"{name}.{'proj' if 'attn' in name else 'fc2'}",)) for name in REGIONS}
    return torch.stack([output for (output,) in EagerReference(model, regions, plan).run(inputs)])


def compile_for(model: nn.Module, dynamic: bool, **options: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(model, backend="soda", options=options, fullgraph=True, dynamic=dynamic)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("block", "conditioning"), gated((DitBlock, "trajectory"), others=[(DitBlock, "step"), (InPlaceBlock, "step")])
)
def test_a_plan_at_many_sizes_with_one_compilation_of_dynamo(block: type[nn.Module], conditioning: str) -> None:
    model = model_of(Listed, block)
    plan = random_plan(1, REGIONS, STEPS, compute=0.3)
    expected = [by_hooks(model, plan, calls(*sizes)) for sizes in SIZES]
    compiled = compile_for(model, dynamic=True, plan=plan, conditioning=conditioning)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for sizes, wanted in zip(SIZES, expected, strict=True):
            torch.testing.assert_close(generate(model, compiled, calls(*sizes)), wanted, rtol=1e-5, atol=1e-5)
    assert soda_compile.stats(model)["model"]["misses"] == {}


@pytest.mark.thorough  # tests/unit/packages does the same with a package
@pytest.mark.parametrize(
    "pruning",
    [Pruning("drift", share="block", staleness=0.1), Pruning("feature_mean", groups=2)],
    ids=["drift", "mean"],
)
def test_tokens_are_pruned_at_any_number_of_them(pruning: Pruning) -> None:
    model, sizes = model_of(Listed, DitBlock), ((6, 9), (8, 16), (10, 12))
    plan = random_plan(1, REGIONS, STEPS, pruning=pruning)
    static = compile_for(model, dynamic=False, plan=plan)
    expected = [generate(model, static, calls(*each)) for each in sizes]
    compiled = compile_for(model, dynamic=True, plan=plan)
    before = soda_compile.stats(model)["model"]["compilations"]
    for each, wanted in zip(sizes, expected, strict=True):
        torch.testing.assert_close(generate(model, compiled, calls(*each)), wanted, rtol=1e-5, atol=1e-6)
    counted = soda_compile.stats(model)["model"]
    assert (counted["compilations"] - before, counted["misses"]) == (1, {})


@pytest.mark.thorough
def test_numbers_that_are_sizes() -> None:
    model = model_of(Grid, DitBlock)
    plan = random_plan(2, REGIONS, STEPS)
    sizes = [(batch, tokens) for batch, tokens in SIZES if tokens % 3 == 0]
    expected = [by_hooks(model, plan, calls(*each, grid=True)) for each in sizes]
    compiled = compile_for(model, dynamic=True, plan=plan)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for each, wanted in zip(sizes, expected, strict=True):
            found = generate(model, compiled, calls(*each, grid=True))
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert len(soda_compile.stats(model)["model"]["misses"]) == 0


def test_any_number_of_sizes_without_being_asked_for() -> None:
    """Dynamo makes a size symbolic when it takes a second value, and gives up after a few compilations."""
    model = model_of(Listed, DitBlock)
    plan = random_plan(3, REGIONS, STEPS)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="soda", options={"plan": plan}, fullgraph=True)
    for batch in range(2, 14):
        generate(model, compiled, calls(batch, 9))
    counted = soda_compile.stats(model)["model"]
    assert (counted["calls"], counted["misses"]) == (12 * STEPS, {})


def test_a_size_that_the_plan_does_not_cover_runs_without_it() -> None:
    """Three samples do not fall into groups of two."""
    model = model_of(Listed, DitBlock)
    plan = random_plan(3, REGIONS, STEPS, pruning=Pruning("random", groups=2), compute=0.3)
    compiled = compile_for(model, dynamic=True, plan=plan)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (6, 3, 8):
            generate(model, compiled, calls(batch, 9))
        with torch.no_grad():
            found = torch.stack([model(**call) for call in calls(3, 9)])
        torch.testing.assert_close(generate(model, compiled, calls(3, 9)), found)
    counted = soda_compile.stats(model)["model"]
    assert (counted["calls"], counted["misses"]) == (2 * STEPS, {"structure": 2 * STEPS})


class Reports(Listed):
    """Tells the host how many tokens there are, in the middle."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        tokens = x.repeat_interleave(2, 1).shape[1]
        torch._dynamo.graph_break()
        return super().forward(x, t) * tokens


@pytest.mark.thorough
def test_a_part_that_returns_a_size_runs_as_it_is() -> None:
    model = model_of(Reports, DitBlock)
    plan = random_plan(1, REGIONS, STEPS, compute=1.0)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="soda", options={"plan": plan}, dynamic=True)
    for sizes in SIZES:
        with torch.no_grad():
            wanted = torch.stack([model(**call) for call in calls(*sizes)])
        torch.testing.assert_close(generate(model, compiled, calls(*sizes)), wanted, rtol=1e-5, atol=1e-5)
    assert soda_compile.stats(model)["model"]["misses"] == {}


def test_a_graph_with_nothing_to_plan() -> None:
    model = model_of(Norms)
    plan = random_plan(3, ("blocks.0.attn",), STEPS)
    compiled = compile_for(model, dynamic=True, plan=plan)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for sizes in SIZES:
            call = calls(*sizes)[0]
            torch.testing.assert_close(compiled(**call), model(**call))
