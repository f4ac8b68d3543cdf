"""The flow-matching model with inputs: ``soda-compile inspect examples.fashion.example:example``."""

from typing import Any

import torch

from examples.fashion.data import NAMES
from examples.fashion.pipeline import load_flow


def example(samples: int = 1) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The transformer of the flow pipeline and what one of its guided calls passes.

    Args:
        samples: images to draw; guidance doubles the batch.

    Returns:
        The model and its inputs by name.
    """
    pipe = load_flow()
    words = [NAMES[number % len(NAMES)] for number in range(samples)]
    with torch.no_grad():
        text, pooled = pipe.text_encoder(pipe.text_encoder.tokenise([*words, *[""] * samples]))
    return pipe.transformer, {
        "hidden_states": torch.randn(2 * samples, 1, 28, 28, generator=torch.Generator().manual_seed(0)),
        "timestep": torch.full((2 * samples,), 500.0),
        "encoder_hidden_states": text,
        "pooled_projections": pooled,
    }
