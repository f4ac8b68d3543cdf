"""The structure of a model as the compiler sees it: its blocks and regions, without compiling."""

from typing import Any

import torch

from soda_compile.compiler.analyse import analyse_model
from soda_compile.distributed.modules import unwrapped
from soda_compile.integrations.base import around_calls, framework_of
from soda_compile.ir.structure import Structure


def inspect(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Structure:
    """Capture a denoiser as the backend would and return its structure; print it for the tree of blocks and regions.

    Runs the model, in eager mode. Where Dynamo cannot capture it as one graph, but all its regions are in one of the
    graphs, that graph's structure is returned and the reason is logged. Hooks of a framework on its layers, such as
    those of group offloading, are left out.

    Args:
        model: The denoiser.
        *args: As for one call of the model.
        **kwargs: As for one call of the model.

    Raises:
        CaptureError: If the model's regions are not all in one graph, with the reason why it breaks.
        OptionError: If the model is kept in a way that cannot be captured.
    """
    model = unwrapped(getattr(model, "_orig_mod", model))
    return analyse_model(model, args, kwargs, around=around_calls(model, framework_of(model)))
