"""Kept values that are rounded, and kept outputs, against hooks in eager mode."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")

from eager_reference import EagerReference, tensors
from families import FAMILIES, structure_of
from thorough import gated

import soda_compile
from soda_compile.plans.actions import COMPUTE, FORECAST1, FORECAST2, REUSE
from soda_compile.plans.fitted_weights import OUTPUT, FittedWeights
from soda_compile.plans.plan import Plan

ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
ROW = (COMPUTE, REUSE, COMPUTE, FORECAST1, COMPUTE, FORECAST2, FORECAST2, REUSE)
STEPS = len(ROW)
OUTPUTS = (
    FittedWeights(1, OUTPUT, (0.8, 0.3)),
    FittedWeights(3, OUTPUT, (1.2, -0.3, 0.1)),
    FittedWeights(6, 2, (1.5, -0.7, 0.3)),
    FittedWeights(6, OUTPUT, (0.9, 0.2)),
)

pytestmark = pytest.mark.usefixtures("eager_throughout")


def plan_for(name: str, **fields: Any) -> Plan:
    structure = structure_of(name)
    return Plan(structure.fingerprint, structure.region_names, (ROW,) * len(structure.regions), **fields)


def run(model: nn.Module, plan: Plan, inputs: list[dict[str, Any]]) -> list[tuple[Tensor, ...]]:
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="soda", options={"plan": plan}, fullgraph=True, dynamic=False)
    with torch.no_grad(), soda_compile.trajectory(model):
        return [tensors(compiled(**call)) for call in inputs]


@pytest.mark.parametrize("name", gated("dit", "flux", others=FAMILIES))
def test_outputs_are_mixed_with_those_of_anchors(name: str) -> None:
    model, inputs = FAMILIES[name].build(), list(FAMILIES[name].trajectory(STEPS))
    plan = plan_for(name, weights=OUTPUTS)
    reference = EagerReference(model, FAMILIES[name].regions, plan)
    torch.testing.assert_close(run(model, plan, inputs), reference.run(inputs), **ROUNDING)


def by_rows(value: Tensor, dtype: torch.dtype, largest: float) -> Tensor:
    scale = value.float().abs().amax(-1, keepdim=True) / largest
    rows = value.float() / scale
    return ((rows if dtype.is_floating_point else rows.round()).to(dtype).float() * scale).to(value.dtype)


ROUND = {
    "bfloat16": lambda value: value.bfloat16().to(value.dtype),
    "int8": lambda value: by_rows(value, torch.int8, 127),
    "float8": lambda value: by_rows(value, torch.float8_e4m3fn, 448),
}


@pytest.mark.parametrize("slot_dtype", ROUND)
@pytest.mark.parametrize("name", gated("dit", others=FAMILIES))
def test_kept_values_are_rounded(name: str, slot_dtype: Any) -> None:
    """Where a value lies between two roundings, sums in another order decide; nearly all others are the same."""
    model, inputs = FAMILIES[name].build(), list(FAMILIES[name].trajectory(STEPS))
    plan = plan_for(name, slot_dtype=slot_dtype)
    found = run(model, plan, inputs)
    exact, rounded = (
        EagerReference(model, FAMILIES[name].regions, plan_for(name), keep=keep).run(inputs)
        for keep in (lambda value: value, ROUND[slot_dtype])
    )
    for step, (ours, theirs, unrounded) in enumerate(zip(found, rounded, exact, strict=True)):
        if ROW[step] == COMPUTE:
            torch.testing.assert_close(ours, unrounded, **ROUNDING)
            continue
        off, moved = (
            sum(float((a - b).square().sum()) for a, b in zip(one, theirs, strict=True)) for one in (ours, unrounded)
        )
        assert moved > 0
        assert off < 0.04 * moved, (step, off, moved)
