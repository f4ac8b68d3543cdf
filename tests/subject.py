"""A small denoiser under a plan that reuses and forecasts, and generations of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import soda_compile
from soda_compile.plans.plan import Plan

STEPS = 6


@dataclass
class Subject:
    """A denoiser, its plan, and generations of it.

    Attributes:
        model: The denoiser.
        plan: Reuses and forecasts.
        options: Of the backend.
    """

    model: nn.Module
    plan: Plan
    options: dict[str, Any] = field(default_factory=dict)

    def compiled(self, **options: Any) -> Callable[..., Tensor]:
        """The model compiled by the plan."""
        chosen = {"plan": self.plan, **options}
        return torch.compile(self.model, backend="soda", options=chosen, fullgraph=True, dynamic=False)  # type: ignore[no-any-return]

    def steps(self, seed: int) -> list[tuple[Tensor, Tensor]]:
        """Inputs of one generation."""
        start, direction = torch.randn(2, 2, 9, 4, generator=torch.Generator().manual_seed(seed))
        return [(start + direction * step / STEPS, torch.full((2,), 1 - step / STEPS)) for step in range(STEPS)]

    def run(self, compiled: Callable[..., Tensor], seed: int) -> list[Tensor]:
        """The outputs of one generation."""
        with torch.no_grad(), soda_compile.trajectory(self.model):
            return [compiled(*step) for step in self.steps(seed)]

    def plain(self, seed: int) -> list[Tensor]:
        """The outputs of the original model."""
        with torch.no_grad():
            return [self.model(*step) for step in self.steps(seed)]
