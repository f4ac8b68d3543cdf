"""Python numbers as timesteps, whatever the model does with them: any number of values compiles a few times."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from plain_models import REGIONS, DitBlock, Listed
from random_plans import random_plan
from thorough import gated
from torch import Tensor, nn
from tracing import statistics

import soda_compile

STEPS = 12
Use = Callable[[Tensor, Any], Tensor]


pytestmark = pytest.mark.usefixtures("eager")


def filled(x: Tensor, t: Any) -> Tensor:
    return torch.full((x.shape[0],), t)


def narrow(x: Tensor, t: Any) -> Tensor:
    return torch.full((x.shape[0],), t, dtype=torch.bfloat16).float()


def made(x: Tensor, t: Any) -> Tensor:
    return torch.tensor(t).expand(x.shape[0])


def listed(x: Tensor, t: Any) -> Tensor:
    return torch.tensor([t]).repeat(x.shape[0])


def divided(x: Tensor, t: Any) -> Tensor:
    return x.new_ones(x.shape[0]) * (t / 7) + (t - 1) * 2


def in_place(x: Tensor, t: Any) -> Tensor:
    return x.new_ones(x.shape[0]).mul_(t).add_(t * t)


class Numbered(Listed):
    """Takes the timestep as a number."""

    def __init__(self, use: Use) -> None:
        super().__init__(DitBlock)
        self.use = use

    def forward(self, x: Tensor, t: Any) -> Tensor:
        return super().forward(x, self.use(x, t).float() / STEPS)


def denoiser(use: Use) -> nn.Module:
    torch.manual_seed(0)
    model = Numbered(use).eval().requires_grad_(False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def generation(kind: type, width: int = 9) -> list[tuple[Tensor, Any]]:
    start, direction = torch.randn(2, 2, width, 4, generator=torch.Generator().manual_seed(0))
    return [(start + direction * step / STEPS, kind(STEPS - step)) for step in range(STEPS)]


@pytest.mark.parametrize(
    ("use", "kind"),
    gated(
        (filled, int),
        others=[
            (in_place, int),
            (filled, float),
            (narrow, float),
            (made, int),
            (listed, float),
            (divided, int),
            (divided, float),
        ],
    ),
)
def test_values_share_what_is_compiled(use: Use, kind: type) -> None:
    model, steps = denoiser(use), generation(kind)
    plan, everything = random_plan(3, REGIONS, STEPS), soda_compile.compute_all_plan(REGIONS, STEPS)
    with torch.no_grad():
        expected = [model(*step) for step in steps]
        for each in (everything, plan):
            torch._dynamo.reset()
            compiled = torch.compile(model, backend="soda", options={"plan": each})
            before = statistics(model).compilations if each is plan else 0
            with soda_compile.trajectory(model):
                found = [compiled(*step) for step in steps]
            assert statistics(model).compilations - before <= 3
            same = [
                torch.allclose(one, other, rtol=1e-4, atol=1e-4) for one, other in zip(found, expected, strict=True)
            ]
            assert all(same) if each is everything else not all(same)


class Long(Numbered):
    """The number is a size too, and must be one."""

    def forward(self, x: Tensor, t: int) -> Tensor:
        return super().forward(x[:, : t + 2], t)


@pytest.mark.thorough
def test_sizes_stay_sizes() -> None:
    torch.manual_seed(0)
    model = Long(filled).eval().requires_grad_(False)
    steps = generation(int, width=20)[:4]
    plan = soda_compile.compute_all_plan(REGIONS, 4)
    compiled = torch.compile(model, backend="soda", options={"plan": plan})
    with torch.no_grad():
        for step in steps:
            torch.testing.assert_close(compiled(*step), model(*step), rtol=1e-4, atol=1e-5)
