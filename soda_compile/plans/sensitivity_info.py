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
        noise_levels: one per step, the share of noise sigma / (alpha + sigma) in x = alpha * x0 + sigma * eps: from 0,
            clean, to 1, noise alone. For flow matching this is its sigma; elsewhere the logistic function of minus
            half the log SNR. It says what a step is to the model, whatever scheduler runs it.
        derived_from: what was measured, such as "50 steps of DDIMScheduler", where the tables were derived from
            another schedule; None where they were measured.
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
    noise_levels: tuple[float, ...] | None = None
    derived_from: str | None = None
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
        object.__setattr__(self, "seeds", tuple(map(int, self.seeds)))
        for name in ("timesteps", "noise_levels"):
            if (numbers := getattr(self, name)) is None:
                continue
            if len(numbers) != self.steps:
                raise SensitivityError(
                    f"{len(numbers)} {name.replace('_', ' ')} for {self.steps} steps; give one per step"
                )
            object.__setattr__(self, name, tuple(map(float, numbers)))
        if self.noise_levels is not None and not all(0 <= level <= 1 for level in self.noise_levels):
            raise SensitivityError(f"noise levels must lie between 0 and 1; got {self.noise_levels}")
        try:
            config = json.loads(json.dumps(self.scheduler_config))
        except (TypeError, ValueError) as error:
            raise SensitivityError(f"scheduler_config cannot be written as JSON: {error}") from None
        object.__setattr__(self, "scheduler_config", config)
