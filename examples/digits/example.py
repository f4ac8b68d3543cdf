"""The digits model with inputs: ``soda-compile inspect soda_compile.digits.example:example``."""

from typing import Any

import torch

from soda_compile.digits.pipeline import DigitsPipeline, load


def example(samples: int = 1) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Return the transformer of the digits pipeline and what one of its guided calls passes.

    Args:
        samples: digits to draw; guidance doubles the batch.

    Returns:
        The model and its inputs by name.
    """
    transformer: torch.nn.Module = load().transformer
    labels = torch.arange(samples) % 10
    return transformer, {
        "hidden_states": torch.randn(2 * samples, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        "timestep": torch.full((2 * samples,), 500),
        "class_labels": torch.cat([labels, torch.full_like(labels, 10)]),
    }


def pipeline() -> tuple[DigitsPipeline, dict[str, Any]]:
    """Return the digits pipeline, and what draws a three in 20 steps: ``soda-compile sample`` takes both."""
    return load(), {"class_labels": [3], "num_inference_steps": 20}
