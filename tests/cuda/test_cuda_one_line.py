"""The backend with a goal on a GPU: it measures, compiles in a thread beside running generations, and switches."""

import time
from typing import Any

import pytest
import torch
from small_denoiser import TOKENS, WIDTH, Denoiser

import soda_compile

STEPS = 12


def inputs(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(2, TOKENS, WIDTH, generator=generator)
    walk = torch.randn(STEPS, 2, TOKENS, WIDTH, generator=generator).mul(0.2).cumsum(0)
    return [((start + walk[i]).cuda(), torch.full((2,), 1000.0 * (1 - i / STEPS)).cuda()) for i in range(STEPS)]


def run(denoiser: Any, seed: int) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([denoiser(*call).clone() for call in inputs(seed)])


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("goal", [{"speedup": 2.0}, {"quality": "balanced"}, {"max_error": 0.2}])
def test_generations_switch_to_a_plan_in_the_background(goal: dict[str, Any], mode: str | None, tmp_path: Any) -> None:
    model = Denoiser().cuda()
    plain = torch.compile(model, dynamic=False)
    options = {**goal, "generations": 2, "max_interval": 4, "cache": str(tmp_path)}
    denoiser = torch.compile(
        model, backend="soda", options={**options, **({"mode": mode} if mode else {})}, dynamic=False
    )
    before = [(run(denoiser, seed), run(plain, seed)) for seed in range(3)]
    for found, wanted in before:
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    counted: dict[str, Any] = {}
    for seed in range(3, 400):
        found = run(denoiser, seed)
        counted = soda_compile.stats(model)["model"]["generations"]
        if any(each["calls"] for each in counted.values()):
            break
        time.sleep(0.25)
    assert any(each["calls"] == STEPS for each in counted.values()), "no generation followed a plan in 100 s"
    wanted = run(plain, seed)
    assert (found - wanted).norm() < 0.5 * wanted.norm()
    again = run(denoiser, seed)
    torch.testing.assert_close(again, found, rtol=1e-4, atol=1e-5)
