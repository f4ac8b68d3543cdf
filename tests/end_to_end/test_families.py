"""Seven diffusers families through the whole compiler, against plain torch.compile and hooks in eager mode."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from eager_reference import EagerReference
from families import FAMILIES, structure_of
from random_plans import random_plan
from thorough import gated

import soda_compile
from soda_compile.compiler.schedule import schedule_region
from soda_compile.ir.structure import Structure
from soda_compile.plans.actions import COMPUTE, DEFAULT_ACTIONS, FORECAST1, REUSE
from soda_compile.plans.plan import Plan

STEPS = 5
# Compiled code fuses and reorders float32 sums; a wrong action shows at 1e-3 and above, see the last test.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
# Graphs run operator by operator for every family. By Inductor each takes half a minute; a pipeline that it compiles,
# and packages, which have code of it too, are compared with hooks elsewhere.
LOWERINGS = gated(
    *((name, "eager") for name in FAMILIES),
    others=[(name, "inductor") for name in FAMILIES],
)

Outputs = list[tuple[Tensor, ...]]


@cache
def subject(name: str) -> tuple[torch.nn.Module, list[dict[str, Any]], Structure]:
    """Model, inputs of a generation and structure of a family."""
    torch._dynamo.reset()
    model, inputs = FAMILIES[name].build(), FAMILIES[name].trajectory(STEPS)
    return model, inputs, structure_of(name)


@cache
def mixed_plan(name: str, lowering: str = "eager") -> Plan:
    """Of many random plans with every action the one of the fewest block variants; for Inductor one row for all."""
    structure = subject(name)[2]
    if lowering == "inductor":
        row = (COMPUTE, COMPUTE, FORECAST1, COMPUTE, REUSE)
        return Plan(structure.fingerprint, structure.region_names, (row,) * len(structure.region_names))
    plans = [
        random_plan(seed, structure.region_names, STEPS, fingerprint=structure.fingerprint, compute=0.5)
        for seed in range(300)
    ]
    symbols = {action.symbol for action in DEFAULT_ACTIONS}
    return min(
        (plan for plan in plans if set("".join(plan.rows)) == symbols and len(set(plan.rows)) > 2),
        key=lambda plan: variants(plan, structure),
    )


def variants(plan: Plan, structure: Structure) -> int:
    """Distinct block graphs that a plan asks for."""
    found, start = set(), 0
    for call in structure.calls:
        stop = start + len(call.block.regions)
        rows = [schedule_region(actions) for actions in plan.actions[start:stop]]
        found |= {(call.block.key, *(row[step].mode for row in rows)) for step in range(plan.steps)}
        start = stop
    return len(found)


def compiled_with(plan: Plan, model: torch.nn.Module, **options: Any) -> Callable[..., Any]:
    return torch.compile(model, backend="soda", options={"plan": plan, **options}, fullgraph=True, dynamic=False)


def generate(denoiser: Callable[..., Any], inputs: list[dict[str, Any]]) -> Outputs:
    with torch.no_grad():
        return [tuple(denoiser(**call)) for call in inputs]


def generate_again(denoiser: Callable[..., Any], inputs: list[dict[str, Any]]) -> Outputs:
    with torch._dynamo.config.patch(error_on_recompile=True):
        return generate(denoiser, inputs)


@pytest.mark.parametrize(("name", "lowering"), LOWERINGS)
def test_computing_everything_is_plain_compilation(name: str, lowering: str) -> None:
    model, inputs, structure = subject(name)
    plain = generate(torch.compile(model, backend=lowering, fullgraph=True, dynamic=False), inputs)
    plan = soda_compile.compute_all_plan(structure.region_names, STEPS, fingerprint=structure.fingerprint)
    denoiser = compiled_with(plan, model, lowering=lowering)
    first = generate(denoiser, inputs)
    torch.testing.assert_close(first, plain, **ROUNDING)
    torch.testing.assert_close(generate_again(denoiser, inputs), first, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "lowering"), LOWERINGS)
def test_a_mixed_plan_does_what_hooks_do(name: str, lowering: str) -> None:
    model, inputs, _ = subject(name)
    plan = mixed_plan(name, lowering)
    denoiser = compiled_with(plan, model, lowering=lowering)
    first = generate(denoiser, inputs)
    torch.testing.assert_close(first, EagerReference(model, FAMILIES[name].regions, plan).run(inputs), **ROUNDING)
    torch.testing.assert_close(generate_again(denoiser, inputs), first, rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_mixed_plan_shows_in_the_output(name: str) -> None:
    """Otherwise the comparison above would not tell a plan that is carried out from one that is not."""
    model, inputs, _ = subject(name)
    stale = EagerReference(model, FAMILIES[name].regions, mixed_plan(name)).run(inputs)
    exact = generate(model, inputs)
    assert max((a[0] - b[0]).abs().max().item() for a, b in zip(stale, exact, strict=True)) > 1e-3
