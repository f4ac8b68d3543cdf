"""A plan compiles once for each shape and never again, whole and with dynamic shapes."""

from typing import Any

import pytest
import torch
from eager_reference import EagerReference
from families import Region
from plain_models import DitBlock, Listed
from random_plans import random_plan
from thorough import gated
from torch import Tensor
from tracing import graphs_as_they_are

import soda_compile
from soda_compile.plans.plan import Plan

STEPS = 4


@pytest.fixture(autouse=True)
def eager_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs_as_they_are(monkeypatch)


@pytest.fixture(scope="module")
def model() -> Listed:
    torch.manual_seed(0)
    return Listed(DitBlock).eval()


@pytest.fixture(scope="module")
def plan(model: Listed) -> Plan:
    structure = soda_compile.inspect(model, **trajectory(2, 9)[0])
    return random_plan(5, structure.region_names, STEPS, fingerprint=structure.fingerprint)


def trajectory(batch: int, tokens: int) -> list[dict[str, Tensor]]:
    start, direction = torch.randn(2, batch, tokens, 4, generator=torch.Generator().manual_seed(tokens))
    return [
        {"x": start + direction * step / STEPS, "t": torch.full((batch,), 1 - step / STEPS)} for step in range(STEPS)
    ]


def generate(denoiser: Any, model: Listed, calls: list[dict[str, Tensor]]) -> list[Tensor]:
    with torch.no_grad(), soda_compile.trajectory(model):
        return [denoiser(**call) for call in calls]


@pytest.mark.parametrize("dynamic", gated(None, others=[False, True]))
def test_each_shape_compiles_once_and_is_right(model: Listed, plan: Plan, dynamic: bool | None) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="soda", options={"plan": plan}, fullgraph=True, dynamic=dynamic)
    shapes = [(2, 9), (1, 9), (2, 6)]
    for shape in shapes:
        generate(compiled, model, trajectory(*shape))
    regions = {name: Region((f"{name}.{'proj' if 'attn' in name else 'fc2'}",)) for name in plan.regions}
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in [*shapes, *reversed(shapes)]:
            found = generate(compiled, model, trajectory(*shape))
            expected = EagerReference(model, regions, plan).run(trajectory(*shape))
            torch.testing.assert_close(found, [output for (output,) in expected], rtol=1e-5, atol=1e-5)
