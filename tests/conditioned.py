"""Small denoisers compiled with conditioning ahead, and their generations."""

from dataclasses import replace
from typing import Any

import torch
from families import FAMILIES
from random_plans import random_plan
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import soda_compile
from soda_compile.plans.plan import Plan

STEPS = 6
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def subject(name: str = "dit") -> tuple[nn.Module, list[dict[str, Any]], Plan]:
    """A small denoiser, the inputs of its steps, and a plan."""
    model, calls = FAMILIES[name].build(), list(FAMILIES[name].trajectory(STEPS))
    return model, calls, random_plan(1, tuple(FAMILIES[name].regions), STEPS)


def knowing_timesteps(plan: Plan, calls: list[dict[str, Any]]) -> Plan:
    return replace(plan, timesteps=tuple(float(call["timestep"][0]) for call in calls), timestep_input="timestep")


def compiled_with(model: nn.Module, plan: Plan, conditioning: str = "trajectory", **options: Any) -> Any:
    torch._dynamo.reset()
    options = {"plan": plan, "conditioning": conditioning, **options}
    return torch.compile(model, backend="soda", options=options, fullgraph=True, dynamic=False)


def generate(model: nn.Module, compiled: Any, calls: Any, timesteps: Any = None) -> list[Tensor]:
    with torch.no_grad(), soda_compile.trajectory(model, timesteps=timesteps):
        return [leaf for inputs in calls for leaf in tree_leaves(compiled(**inputs))]


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)
