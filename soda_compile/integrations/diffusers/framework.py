"""Diffusers as a framework that hosts denoisers: see ``integrations.base.Framework``."""

from collections.abc import Iterator
from typing import Any

import torch

from soda_compile.capture.forward import Holder, own_holder
from soda_compile.integrations.diffusers import branch_names, denoisers, group_offload
from soda_compile.integrations.diffusers.scheduler_hook import SchedulerHook
from soda_compile.integrations.diffusers.scheduler_steps import recorded_steps
from soda_compile.runtime.clock import Clock

_FORWARD = "_old_forward"  # where accelerate keeps on a module the forward that it wraps


def holders(module: torch.nn.Module) -> Iterator[Holder]:
    """Return all places of a bound forward, the innermost last: accelerate keeps what it wraps on the module."""
    yield from own_holder(module)
    if _FORWARD in vars(module):
        yield Holder(module, _FORWARD)
    for reference in getattr(vars(module).get(group_offload.REGISTRY), "_fn_refs", ()):
        for name in ("forward", "original_forward"):
            if getattr(reference, name) is not None:
                yield Holder(reference, name)


class Diffusers:
    """Diffusers' pipelines, schedulers and models, and the hooks that it and accelerate put on any module."""

    name = "diffusers"
    is_pipeline = staticmethod(denoisers.is_pipeline)
    denoisers_of = staticmethod(denoisers.denoisers_of)
    around_calls = staticmethod(group_offload.around_calls)
    recorded_steps = staticmethod(recorded_steps)
    name_branches = staticmethod(branch_names.name_branches)
    holders = staticmethod(holders)

    def hosts(self, value: Any) -> bool:
        """Return whether a pipeline, a scheduler or a model is of diffusers, or is hooked by it."""
        if isinstance(value, torch.nn.Module):
            hooked = any({_FORWARD, group_offload.REGISTRY} & vars(child).keys() for child in value.modules())
            return hooked or hasattr(value, "register_to_config")
        return self.is_pipeline(value) or all(hasattr(value, name) for name in ("config", "set_timesteps", "step"))

    def sampler_of(self, pipe: Any) -> Any:
        """Return the pipeline's scheduler."""
        return pipe.scheduler

    def attach(self, sampler: Any) -> SchedulerHook:
        """Let a scheduler drive a clock of its own.

        Raises:
            OptionError: If another hook has it.
        """
        return SchedulerHook.attached(sampler, Clock())
