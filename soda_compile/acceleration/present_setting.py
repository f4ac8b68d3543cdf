"""The present setting of a pipeline: digests of its denoisers, and what the generation that begins shows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from soda_compile.acceleration.setting import Setting
from soda_compile.integrations.diffusers.denoisers import architecture, model_digest, signature
from soda_compile.integrations.diffusers.pipeline_call import call_of
from soda_compile.integrations.diffusers.scheduler_hook import SchedulerHook


@dataclass(frozen=True, eq=False)
class PresentSetting:
    """Tells settings of one pipeline.

    Attributes:
        pipe: The pipeline.
        denoisers: Its denoisers by component name.
    """

    pipe: Any
    denoisers: Mapping[str, torch.nn.Module]
    _digests: dict[str, str] = field(default_factory=dict)  # of models, by name and cheap signature

    def __call__(self, hook: SchedulerHook) -> Setting:
        """Return the setting of a generation that begins; called while its timesteps are set."""
        scheduler, timesteps = hook.scheduler, hook.timesteps
        return Setting(
            pipeline=type(self.pipe).__name__,
            models=self.models(),
            architectures=self.architectures(),
            scheduler=f"{hook.name} {hook.digest}",
            steps=int(getattr(scheduler, "num_inference_steps", None) or len(timesteps)),
            timesteps=tuple(timesteps),
            call=call_of(scheduler),
        )

    def models(self) -> dict[str, str]:
        """Return the digests of the denoisers as they are now, by component name."""
        return {name: self._digest(name, module) for name, module in self.denoisers.items()}

    def architectures(self) -> dict[str, str]:
        """Return the digests of the denoisers' architectures, by component name."""
        return {name: architecture(module) for name, module in self.denoisers.items()}

    def _digest(self, name: str, module: torch.nn.Module) -> str:
        cheap = f"{name} {signature(module)}"
        if cheap not in self._digests:
            self._digests[cheap] = model_digest(module)
        return self._digests[cheap]
