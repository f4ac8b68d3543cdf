"""Generations of a denoiser with side information, with and without what is computed once."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from side_models import side_inputs, step_inputs
from torch import Tensor, nn

import soda_compile
from soda_compile.backend import prepared
from soda_compile.plans.plan import Plan

STEPS = 6
ALL = [0, 1, 2]
"""Calls of the constant stage: of the head for text and mask, and of the two blocks."""

Calls = list[dict[str, Any]]


def calls(seed: int = 0) -> Calls:
    """A generation's calls, with the same side information at each."""
    side = side_inputs(seed)
    return [{**step_inputs(step, STEPS, seed), **side} for step in range(STEPS)]


def compiled_with(model: nn.Module, plan: Plan, **options: Any) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(model, backend="soda", options={"plan": plan, **options}, fullgraph=True, dynamic=False)  # type: ignore[no-any-return]


def generate(model: nn.Module, compiled: Callable[..., Tensor], given: Calls) -> list[Tensor]:
    with torch.no_grad(), soda_compile.trajectory(model):
        return [compiled(**call).clone() for call in given]


def without(model: nn.Module, plan: Plan, given: Calls) -> list[Tensor]:
    """What the plan gives where everything is computed at each step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "take_constants", lambda structure, timestep, lowering: (structure, None))
        return generate(model, compiled_with(model, plan), given)


def assert_equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def at(steps: dict[int, list[int]]) -> list[list[int]]:
    return [steps.get(step, []) for step in range(STEPS)]
