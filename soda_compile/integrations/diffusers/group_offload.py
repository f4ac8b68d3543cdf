"""Runs a denoiser under diffusers' group offloading: its hooks cannot be captured, so the whole model is brought in."""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from soda_compile.errors import OptionError

REGISTRY = "_diffusers_hook"  # where diffusers keeps its hooks on a module


def hooks_of(module: torch.nn.Module) -> Mapping[str, Any]:
    """Return diffusers' hooks on a module by name."""
    hooks: Mapping[str, Any] = getattr(vars(module).get(REGISTRY), "hooks", {})
    return hooks


def around_calls(module: torch.nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Return what makes the context of one call: the groups that diffusers offloads on the device, without hooks.

    Raises:
        OptionError: If the weights are kept on disk.
    """
    groups = {id(hook.group): hook.group for child in module.modules() for hook in _hooks(child)}
    if any(group.offload_to_disk_path is not None for group in groups.values()):
        raise OptionError(
            f"the weights of this {type(module).__name__} are offloaded to disk; use enable_group_offload without "
            "offload_to_disk_path, or pipe.enable_model_cpu_offload()"
        )
    return functools.partial(_onloaded, module, list(groups.values())) if groups else nullcontext


@contextmanager
def _onloaded(module: torch.nn.Module, groups: list[Any]) -> Iterator[None]:
    hooked = [child for child in module.modules() if child is not module and _hooks(child)]
    forwards = [child.__dict__.pop("forward") for child in hooked]
    try:
        for group in groups:
            group.onload_()
            if group.stream is not None:
                group.stream.synchronize()
        yield
    finally:
        for group in groups:
            group.offload_()
        for child, forward in zip(hooked, forwards, strict=True):
            child.forward = forward


def _hooks(module: torch.nn.Module) -> list[Any]:
    return [hook for hook in hooks_of(module).values() if hasattr(hook, "group")]
