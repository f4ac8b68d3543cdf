"""The setting of a sensitivity measurement: everything beside its tables."""

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from soda_compile.errors import SensitivityError
from soda_compile.plans.pruning import SCORES

Metric = Literal["cosine", "relative", "residual"]
METRICS: tuple[Metric, ...] = ("cosine", "relative", "residual")
PRUNE_OPERATORS = tuple(f"prune.{score}" for score in SCORES)


@dataclass(frozen=True)
class SensitivityInfo:
    """The setting and the size of a measurement.

    Attributes:
        fingerprint: hash of the model structure.
        regions: region names, in the order of the tables.
        steps: denoising steps in one generation.
        max_interval: W, the largest age in steps that was measured.
        generations: generations run.
        samples: samples seen, over which mean and variance are taken.
        seeds: the seeds used, all different.
        timesteps: the scheduler's timesteps, one per step, as it gives them.
        timestep_input: name of the model input that carries the timestep.
        scheduler: class name of the noise scheduler.
        scheduler_config: its configuration, JSON-able.
        scheduler_digest: short hash of that configuration.
        guidance: guidance scale.
        calls_per_step: denoiser calls in one step.
        tokens: which tokens were looked at, such as {"stride": 4, "kept": 64}.
        versions: versions of the packages used.
        notes: anything else worth keeping, such as the device and the time it took.

    Raises:
        SensitivityError: a value is impossible.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    fingerprint: str
    regions: tuple[str, ...]
    steps: int
    max_interval: int
    generations: int
    samples: int
    seeds: tuple[int, ...]
    timesteps: tuple[float, ...] | None = None
    timestep_input: str | None = None
    scheduler: str | None = None
    scheduler_config: dict[str, Any] | None = None
    scheduler_digest: str | None = None
    guidance: float | None = None
    calls_per_step: int = 1
    tokens: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("steps", "max_interval", "generations", "samples", "calls_per_step"):
            if getattr(self, name) < 1:
                raise SensitivityError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.regions:
            raise SensitivityError("sensitivity data needs at least one region")
        for name in ("regions", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise SensitivityError(f"{name} must all be different; got {values}")
        if self.timesteps is not None and len(self.timesteps) != self.steps:
            raise SensitivityError(f"{len(self.timesteps)} timesteps for {self.steps} steps; give one per step")
        object.__setattr__(self, "seeds", tuple(map(int, self.seeds)))
        if self.timesteps is not None:
            object.__setattr__(self, "timesteps", tuple(map(float, self.timesteps)))
        try:
            config = json.loads(json.dumps(self.scheduler_config))
        except (TypeError, ValueError) as error:
            raise SensitivityError(f"scheduler_config cannot be written as JSON: {error}") from None
        object.__setattr__(self, "scheduler_config", config)
