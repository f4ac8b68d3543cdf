"""One denoiser while generations are measured: the errors of its regions, and the sensitivity made of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from soda_compile.compiler.prune_flops import prune_flops
from soda_compile.errors import SensitivityError
from soda_compile.integrations.base import SamplerHook, Stage
from soda_compile.measure.error_accumulator import ErrorAccumulator
from soda_compile.measure.gram import ErrorEntries, Floats
from soda_compile.measure.profile_store import versions
from soda_compile.plans.sensitivity import METRICS, Sensitivity, SensitivityInfo
from soda_compile.runtime.call_counter import CallCounter
from soda_compile.runtime.clock import Clock


@dataclass(eq=False)
class Observation:
    """The errors of a denoiser that is measured, and its part of the schedule where there is one."""

    errors: ErrorAccumulator
    stage: Stage | None = None

    def sensitivity(
        self,
        hook: SamplerHook | None,
        weights: Floats | None,
        seeds: Sequence[int],
        guidance: float | None,
        seconds: float,
    ) -> Sensitivity:
        """Return what was measured.

        Args:
            hook: The sampler's, if there is one.
            weights: How much each step of the schedule weighs, float64 [steps]; None for all alike.
            seeds: Those of the generations.
            guidance: Guidance scale, to be recorded.
            seconds: Time that was taken, to be recorded.
        """
        errors, structure = self.errors, self.errors.structure
        assert structure is not None
        first = self.stage.called_at if self.stage else 0
        part = slice(first, first + errors.steps)
        notes = {"seconds": f"{seconds:.1f}", "device": str(structure.regions[0].cuts[0].device)}
        if hook is not None and errors.steps < (whole := len(hook.timesteps)):
            notes |= {"first_step": str(first), "schedule_steps": str(whole)}
        levels, why_not = _noise_levels(hook)
        notes |= why_not
        mean, variance = _tables(errors, errors.steps, len(structure.regions))
        timestep_input, timesteps = _find_timestep(errors.inputs, None if hook is None else hook.timesteps[part])
        info = SensitivityInfo(
            fingerprint=structure.fingerprint,
            regions=structure.region_names,
            steps=errors.steps,
            max_interval=errors.entries.max_interval,
            generations=len(seeds),
            samples=errors.samples,
            seeds=tuple(seeds),
            timesteps=timesteps,
            timestep_input=timestep_input,
            scheduler=hook.name if hook is not None else None,
            scheduler_config=hook.config if hook is not None else None,
            scheduler_digest=hook.digest if hook is not None else None,
            noise_levels=levels[part] if levels else None,
            guidance=guidance,
            calls_per_step=errors.calls_in_a_step,
            tokens={"stride": errors.stride},
            versions=versions(),
            notes=notes,
        )
        step_weights = np.ones(errors.steps) if weights is None else weights[part]
        region_flops = np.array([region.flops for region in structure.regions], dtype=np.float64)
        removed = prune_flops(structure) if errors.prune_scores else None
        return Sensitivity(info, mean, variance, step_weights, region_flops, float(structure.flops), removed)


def observe(
    denoisers: Collection[str],
    max_interval: int,
    memory_bytes: int,
    *,
    counted: bool = False,
    scores: tuple[str, ...] = (),
) -> dict[str, Observation]:
    """Begin to measure the denoisers of a pipeline; give an observation of each by component name.

    Args:
        denoisers: Their component names.
        max_interval: Longest time, in steps, that a value may be kept.
        memory_bytes: Bound on the past values of all of them together.
        counted: Whether denoiser calls advance the step, where no sampler does.
        scores: By which tokens can be ranked.
    """
    entries, share = ErrorEntries(max_interval), memory_bytes // len(denoisers)
    return {
        name: Observation(ErrorAccumulator(Clock(automatic=counted), CallCounter(1), entries, share, scores))
        for name in denoisers
    }


def sensitivities(
    observed: Mapping[str, Observation],
    hook: SamplerHook | None,
    weights: Floats | None,
    seeds: Sequence[int],
    guidance: float | None,
    seconds: float,
) -> dict[str, Sensitivity]:
    """Return what was measured by component name, without what was never called; see ``Observation.sensitivity``."""
    return {
        name: each.sensitivity(hook, weights, seeds, guidance, seconds)
        for name, each in observed.items()
        if each.errors.steps
    }


def _noise_levels(hook: SamplerHook | None) -> tuple[tuple[float, ...] | None, dict[str, str]]:
    """Return the noise level of each step of the schedule, or why it is not known, as a note."""
    if hook is None:
        return None, {}
    try:
        return tuple(hook.noise_levels()), {}
    except SensitivityError as error:
        return None, {"noise_levels": str(error)}


def _tables(errors: ErrorAccumulator, steps: int, regions: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return mean and variance of the errors by metric and operator, float32 [steps, regions, ...]."""
    values = np.full((2, len(METRICS), steps, regions, errors.width), np.nan)
    for (step, region), moments in errors.moments.items():
        counted = moments.count > 0
        values[0, :, step, region][counted] = moments.mean[counted]
        values[1, :, step, region][counted] = moments.deviation[counted] / moments.count[counted]
    mean, variance = (
        {
            f"{metric}.{operator}": np.ascontiguousarray(table, dtype=np.float32)
            for metric, rows in zip(METRICS, statistic, strict=True)
            for operator, table in errors.split(rows).items()
        }
        for statistic in values
    )
    return mean, variance


def _find_timestep(
    inputs: Sequence[Mapping[str, float]], timesteps: list[float] | None
) -> tuple[str | None, tuple[float, ...] | None]:
    """Return the input that carries the timestep: the one that follows the scheduler, or else runs one way."""
    for name in inputs[0]:
        if not all(name in numbers for numbers in inputs):
            continue
        values = tuple(numbers[name] for numbers in inputs)
        rises = np.diff(values)
        if timesteps is not None:
            if len(values) == len(timesteps) and np.allclose(values, timesteps, rtol=1e-2, atol=1e-3):
                return name, values
        elif len(rises) and (bool((rises > 0).all()) or bool((rises < 0).all())):
            return name, values
        elif len(rises) > 1 and not rises[::2].any() and rises[1::2].any():
            raise SensitivityError(
                f"input {name!r} has each value twice in a row: if guidance makes a second call, pass calls_per_step=2"
            )
    return None, tuple(timesteps) if timesteps is not None else None
