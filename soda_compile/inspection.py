"""What the compiler sees in a model: its blocks and regions, without compiling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from soda_compile.analysis import analyse
from soda_compile.capture import capture
from soda_compile.errors import CaptureError
from soda_compile.structure import Structure


def inspect(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Structure:
    """Captures a denoiser as the backend would and returns its structure. Runs it once, in eager mode.

    Args:
        model: The denoiser.
        *args: As for one call of the model.
        **kwargs: As for one call of the model.

    Raises:
        CaptureError: If Dynamo cannot capture the model as one graph.
    """
    found: list[Structure] = []

    def look(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        found.append(analyse(capture(module, inputs)))
        return module.forward

    compiled = torch.compile(getattr(model, "_orig_mod", model), backend=look, fullgraph=True, dynamic=False)
    try:
        with torch.no_grad():
            compiled(*args, **kwargs)
    except torch._dynamo.exc.Unsupported as error:
        raise CaptureError(f"{type(model).__name__} cannot be captured as one graph: {error}") from error
    return found[0]
