"""A plan fits its model however the compiled function reaches it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from plain_models import DitBlock, Listed, inputs
from thorough import gated
from torch import Tensor, nn
from tracing import trace

import soda_compile
from soda_compile.errors import PlanError
from soda_compile.ir.captured import Captured
from soda_compile.plans.plan import Plan, compute_all_plan

STEPS = 2

torch.manual_seed(0)
MODEL = Listed(DitBlock).eval()
OTHER = nn.Linear(4, 4)


class Sampler:
    """No module."""

    def __init__(self) -> None:
        self.model, self.parts = MODEL, {"net": [OTHER, MODEL]}

    def step(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(x, t)

    def part(self, x: Tensor, t: Tensor) -> Tensor:
        return self.parts["net"][1](x, t)

    def forward_of(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model.forward(x, t)


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module = MODEL) -> None:
        super().__init__()
        self.inner = model

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.inner(x, t) * 1.0


class Scaled(Wrapper):
    """With a weight of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.inner(x, t) * self.scale


class Pairs(Wrapper):
    """Takes one argument, as the elements of a Sequential do."""

    def forward(self, both: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        return self.inner(*both)


def by_global(x: Tensor, t: Tensor) -> Tensor:
    return MODEL(x, t)


def by_default(x: Tensor, t: Tensor, model: nn.Module = MODEL) -> Tensor:
    return model(x, t)


def by_closure() -> Callable[..., Tensor]:
    model = MODEL

    def inner(x: Tensor, t: Tensor) -> Tensor:
        return model(x, t)

    return lambda x, t: inner(x, t)


def by_sequential() -> Callable[..., Tensor]:
    sequential = nn.Sequential(Pairs())
    return lambda x, t: sequential((x, t))


ROADS: dict[str, Callable[..., Any]] = {
    "lambda": lambda x, t: MODEL(x, t),
    "closure": by_closure(),
    "global": by_global,
    "default": by_default,
    "bound forward": MODEL.forward,
    "attribute": Sampler().step,
    "element of a list in a dict": Sampler().part,
    "forward of an attribute": Sampler().forward_of,
    "attribute of a global": lambda x, t: SAMPLER.step(x, t),
}
WRAPPERS: dict[str, Callable[..., Any]] = {
    "wrapper": Wrapper(),
    "wrappers": Scaled(Wrapper()),
    "wrapper in a function": lambda x, t: WRAPPER(x, t),
    "Sequential": by_sequential(),
}
SAMPLER, WRAPPER = Sampler(), Wrapper()


pytestmark = pytest.mark.usefixtures("eager_throughout")


@pytest.fixture(scope="module")
def plan() -> Plan:
    structure = soda_compile.inspect(MODEL, **inputs())
    return compute_all_plan(structure.region_names, STEPS, fingerprint=structure.fingerprint)


@pytest.mark.parametrize("by_method", [False, True])
def test_blocks_that_are_compiled_by_themselves_keep_their_names(by_method: bool, plan: Plan) -> None:
    model = copy.deepcopy(MODEL)
    for block in model.blocks:
        if by_method:
            block.compile(backend="eager")
        else:
            block.forward = torch.compile(block.forward, backend="eager")
    runs(model, plan)


def runs(compiled: Callable[..., Any], plan: Plan) -> None:
    torch._dynamo.reset()
    denoiser = torch.compile(compiled, backend="soda", options={"plan": plan}, fullgraph=True)
    with torch.no_grad():
        for step in range(STEPS):
            torch.testing.assert_close(denoiser(**inputs(step)), MODEL(**inputs(step)))


def owned(captured: Captured) -> list[str]:
    return [path for path, mine in zip(captured.paths, captured.parameters, strict=True) if mine]


@pytest.mark.parametrize("road", gated(*list(ROADS)[::3], *WRAPPERS, others=ROADS))
def test_the_plan_of_the_model_fits(road: str, plan: Plan) -> None:
    runs((ROADS | WRAPPERS)[road], plan)


@pytest.mark.parametrize("road", gated(*list(ROADS)[::3], others=ROADS))
def test_names_are_those_of_the_model_itself(road: str) -> None:
    alone, reached = (trace(each, **inputs()) for each in (MODEL, ROADS[road]))
    assert set(owned(alone)) == set(owned(reached)) <= {name for name, _ in MODEL.named_parameters()}
    innermost = [
        [node.meta["paths"][-1:] for node in found.graph.nodes if "linear" in node.name] for found in (alone, reached)
    ]
    assert innermost[0] == innermost[1]


@pytest.mark.parametrize("road", ["wrapper", "wrappers"])
def test_the_plan_of_a_wrapper_fits_the_model(road: str) -> None:
    structure = soda_compile.inspect(WRAPPERS[road], **inputs())
    runs(MODEL, compute_all_plan(structure.region_names, STEPS, fingerprint=structure.fingerprint))


def test_weights_of_other_shapes_are_noticed_through_a_wrapper(plan: Plan) -> None:
    other = compute_all_plan(plan.regions, STEPS, fingerprint="0123")
    with pytest.raises(PlanError, match="other weights' shapes"):
        runs(WRAPPERS["wrapper"], other)


@pytest.mark.parametrize(
    "change",
    [
        lambda name: f"a.{name}" if name.startswith("blocks.0") else name,
        lambda name: f"a.{name}" if name.startswith("blocks.0") else f"b.{name}",
        lambda name: f"x{name}",
        lambda name: name.replace("mlp", "ff"),
        lambda name: f"(head).{name}",
    ],
)
def test_other_names_are_another_model(change: Callable[[str], str], plan: Plan) -> None:
    with pytest.raises(PlanError, match="for another model"):
        runs(MODEL, compute_all_plan([change(name) for name in plan.regions], STEPS))


def test_two_models_in_one_function_keep_their_names_apart() -> None:
    second = Listed(DitBlock).eval()
    captured = trace(lambda x, t: MODEL(x, t) + second(x, t), **inputs())
    assert len(set(owned(captured))) == 2 * len(owned(trace(MODEL, **inputs())))
