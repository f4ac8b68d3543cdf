"""Copies of a scheduler that drive nothing, for looking at its schedule."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from soda_compile.integrations.diffusers.scheduler_ties import untied_class

_SET_BY = {"num_inference_steps", "timesteps", "sigmas"}  # arguments that make a schedule


def untied_copy(scheduler: Any) -> Any:
    """Return a copy of a scheduler whose steps are nobody's."""
    copied = copy.deepcopy(scheduler)
    copied.__class__ = untied_class(copied)
    return copied


def fresh_copy(scheduler: Any, arguments: Sequence[Any] = (), options: Mapping[str, Any] | None = None) -> Any:
    """Return an untied copy at the start of the same timesteps, which lie on the CPU whatever the device in use.

    Args:
        scheduler: A diffusers scheduler whose timesteps are set.
        arguments: Positional arguments of the ``set_timesteps`` call that set them; by default their number.
        options: Keyword arguments of it.

    Raises:
        ValueError: If these arguments give other timesteps.
    """
    steps = len(scheduler.timesteps)
    copied = untied_copy(scheduler)
    options = options or {}
    if not arguments and not _SET_BY & options.keys():
        arguments = (steps,)
    given = inspect.signature(copied.set_timesteps).bind(*arguments, **options)
    if "device" in given.signature.parameters:
        given.arguments["device"] = "cpu"
    copied.set_timesteps(*given.args, **given.kwargs)
    if not torch.equal(torch.as_tensor(copied.timesteps), torch.as_tensor(scheduler.timesteps).cpu()):
        raise ValueError(f"set_timesteps({steps}) gives other timesteps than the ones in use")
    return copied
