"""Runs a denoiser under diffusers' hooks on its layers, which cannot be captured.

Under group offloading the whole model is brought in for each call; for layerwise casting see ``layerwise_casting``.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from soda_compile.errors import OptionError
from soda_compile.integrations.diffusers.layerwise_casting import CASTING, LORA, cast_in_graph

REGISTRY = "_diffusers_hook"  # where diffusers keeps its hooks on a module


def hooks_of(module: torch.nn.Module) -> Mapping[str, Any]:
    """Return diffusers' hooks on a module by name."""
    hooks: Mapping[str, Any] = getattr(vars(module).get(REGISTRY), "hooks", {})
    return hooks


def around_calls(module: torch.nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Return what makes the context of one call: no hooks on layers, and what these do done in another way.

    Raises:
        OptionError: If the weights are kept on disk.
    """
    # A hook on the module itself stays around its forward.
    layers = {child: hooks_of(child) for child in module.modules() if child is not module}
    hooks = {layer: found for layer, found in layers.items() if _groups(layer) or {CASTING, LORA} & found.keys()}
    groups = {id(group): group for child in module.modules() for group in _groups(child)}
    if any(group.offload_to_disk_path is not None for group in groups.values()):
        raise OptionError(
            f"the weights of this {type(module).__name__} are offloaded to disk; use enable_group_offload without "
            "offload_to_disk_path, or pipe.enable_model_cpu_offload()"
        )
    return functools.partial(_without_hooks, hooks, list(groups.values())) if hooks or groups else nullcontext


@contextmanager
def _without_hooks(hooks: Mapping[torch.nn.Module, Mapping[str, Any]], groups: Sequence[Any]) -> Iterator[None]:
    forwards = {layer: layer.__dict__.pop("forward") for layer in hooks}
    try:
        for group in groups:
            group.onload_()
            if group.stream is not None:
                group.stream.synchronize()
        with cast_in_graph(hooks):
            yield
    finally:
        for group in groups:
            group.offload_()
        for layer, forward in forwards.items():
            layer.forward = forward


def _groups(module: torch.nn.Module) -> list[Any]:
    """Return the groups of a module, which diffusers brings in and out together."""
    return [hook.group for hook in hooks_of(module).values() if hasattr(hook, "group")]
