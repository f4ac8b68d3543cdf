"""Diffusers families on a GPU: Inductor's Triton kernels, against plain torch.compile and hooks in eager mode."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

pytest.importorskip("diffusers")

from eager_reference import EagerReference
from families import FAMILIES
from random_plans import random_plan

import soda_compile
from soda_compile.plans.plan import Plan

STEPS = 5
ROUNDING = {"rtol": 1e-3, "atol": 1e-4}
Case = tuple[torch.nn.Module, list[dict[str, Any]]]


def case(name: str, dtype: torch.dtype = torch.float32) -> Case:
    def move(value: Tensor) -> Tensor:
        return value.to("cuda", dtype if value.is_floating_point() else value.dtype)

    calls = [tree_map_only(Tensor, move, call) for call in FAMILIES[name].trajectory(STEPS)]
    return FAMILIES[name].build().to("cuda", dtype), calls


def compiled(model: torch.nn.Module, plan: Plan, mode: str | None = None, **options: Any) -> Callable[..., Any]:
    settings = {"plan": plan, **options, **({"mode": mode} if mode else {})}
    return torch.compile(model, backend="soda", options=settings, fullgraph=True, dynamic=False)


def generate(denoiser: Callable[..., Any], calls: list[dict[str, Any]]) -> list[Tensor]:
    with torch.no_grad():
        return [denoiser(**call)[0].clone() for call in calls]


def everything(name: str) -> Plan:
    return soda_compile.compute_all_plan(tuple(FAMILIES[name].regions), STEPS)


def mixed(name: str) -> Plan:
    return random_plan(3, tuple(FAMILIES[name].regions), STEPS, compute=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_computing_everything_is_plain_compilation(name: str, dtype: torch.dtype) -> None:
    model, calls = case(name, dtype)
    plain = generate(torch.compile(model, fullgraph=True, dynamic=False), calls)
    first = generate(compiled(model, everything(name)), calls)
    scale = max(value.abs().max().item() for value in plain)
    rounding = ROUNDING if dtype == torch.float32 else {"rtol": 0.0, "atol": 0.02 * scale}
    torch.testing.assert_close(first, plain, **rounding)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_mixed_plan_does_what_hooks_do(name: str) -> None:
    """By default, with CUDA graphs, and with the conditioning ahead."""
    model, calls = case(name)
    reference = EagerReference(model, FAMILIES[name].regions, mixed(name)).run(calls)
    wanted = [outputs[0] for outputs in reference]
    denoiser = compiled(model, mixed(name))
    first = generate(denoiser, calls)
    torch.testing.assert_close(first, wanted, **ROUNDING)
    torch.testing.assert_close(generate(denoiser, calls), first, rtol=0, atol=0)
    torch._dynamo.reset()
    recorded = compiled(model, mixed(name), mode="reduce-overhead")
    recordings = [generate(recorded, calls) for _ in range(4)]  # runs, records, replays
    torch.testing.assert_close(recordings[0], wanted, **ROUNDING)
    for replayed in recordings[1:]:
        torch.testing.assert_close(replayed, recordings[0], rtol=0, atol=0)


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("name", ["dit", "pixart", "flux"])
def test_conditioning_ahead_is_the_same(name: str, mode: str | None) -> None:
    model, calls = case(name)
    wanted = [out[0] for out in EagerReference(model, FAMILIES[name].regions, mixed(name)).run(calls)]
    denoiser = compiled(model, mixed(name), mode, conditioning="trajectory")
    for _ in range(4):
        torch.testing.assert_close(generate(denoiser, calls), wanted, **ROUNDING)


@pytest.mark.parametrize("name", ["dit", "flux", "wan"])
def test_bfloat16_stays_as_close_to_float32_as_without_us(name: str) -> None:
    """Under a plan, measured against hooks in float32, beside hooks in bfloat16."""
    model, calls = case(name)
    wanted = [out[0] for out in EagerReference(model, FAMILIES[name].regions, mixed(name)).run(calls)]
    half, given = case(name, torch.bfloat16)
    eager = [out[0].float() for out in EagerReference(half, FAMILIES[name].regions, mixed(name)).run(given)]
    found = [value.float() for value in generate(compiled(half, mixed(name)), given)]

    def off(values: list[Tensor]) -> float:
        return max(((a - b).norm() / b.norm()).item() for a, b in zip(values, wanted, strict=True))

    assert off(found) < max(2 * off(eager), 0.01)
