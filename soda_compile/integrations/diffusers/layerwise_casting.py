"""Runs a denoiser under diffusers' layerwise casting in a way that can be captured.

Its hooks cast the weights of a layer in place before each call and back behind it. In the context of a call the layers
have forwards in place of these hooks that cast the same weights as a part of the graph.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import torch

from soda_compile.torch_internals.reparametrisation import with_tensors

CASTING = "layerwise_casting"
LORA = "peft_autocast_disable"  # keeps LoRA from casting its input to the dtype that the weights are stored in


@contextmanager
def cast_in_graph(hooks: Mapping[torch.nn.Module, Mapping[str, Any]]) -> Iterator[None]:
    """Give layers that diffusers casts, and what is inside them, forwards that cast their own weights.

    Args:
        hooks: The layers with their hooks by name; they have no hooked forward inside the context.
    """
    cast = {
        inner: found[CASTING].compute_dtype
        for layer, found in hooks.items()
        if CASTING in found
        for inner in layer.modules()
        if _own_tensors(inner) and "forward" not in vars(inner)
    }
    with ExitStack() as stack:
        for layer in (layer for layer, found in hooks.items() if LORA in found):
            from peft.helpers import disable_input_dtype_casting

            stack.enter_context(disable_input_dtype_casting(layer))
        for inner, dtype in cast.items():
            inner.forward = MethodType(_cast_to(dtype), inner)
            stack.callback(delattr, inner, "forward")
        yield


@functools.cache
def _cast_to(dtype: torch.dtype) -> Callable[..., Any]:
    """Return a forward that casts, as ``Module.to`` does, what holds floating point or complex numbers."""

    def forward(self: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        with with_tensors(self, {name: value.to(dtype) for name, value in _own_tensors(self).items()}):
            return type(self).forward(self, *arguments, **options)

    return forward


def _own_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    return {name: value for name, value in tensors.items() if value.is_floating_point() or value.is_complex()}
