"""Measures offline how sensitive every step and region is to being skipped (SODA's OFS, arXiv 2603.07057)."""

from __future__ import annotations

import functools
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from soda_compile.backend import soda
from soda_compile.clock import Clock
from soda_compile.errors import OptionError, SensitivityError
from soda_compile.forward import compile_forward, restore_forward
from soda_compile.gram import ErrorEntries, Floats
from soda_compile.integrations.diffusers import (
    SchedulerTie,
    denoiser_of,
    is_pipeline,
    scheduler_config,
    scheduler_digest,
)
from soda_compile.lowering import progress_bar
from soda_compile.recorder import METRICS, Recorder
from soda_compile.sensitivity import Sensitivity, SensitivityInfo, merge
from soda_compile.step_weights import probe_step_weights


def calibrate(
    model: Any,
    generate: Callable[[int], Any],
    *,
    generations: int = 10,
    max_interval: int = 10,
    calls_per_step: int = 1,
    scheduler: Any = None,
    guidance: float | None = None,
    memory_bytes: int = 2**30,
    resume: Sensitivity | None = None,
) -> Sensitivity:
    """Runs generations of the original model and measures the error of every reuse and forecast, in one pass.

    Memory: a window of ``2 * max_interval`` past values for each region and stream, at most ``memory_bytes``; where
    the values are larger, every k-th token is kept and k is recorded.

    Args:
        model: The denoiser (not compiled), or a diffusers pipeline.
        generate: Runs one whole generation from a seed, calling ``model``. What it returns is not used. Rows of a
            batch count as samples.
        generations: How often to call it.
        max_interval: Longest time, in steps, that a value may be kept.
        calls_per_step: Denoiser calls in a step of a loop without a diffusers scheduler: 2 if guidance makes a
            second call.
        scheduler: The diffusers scheduler that a hand-written loop uses. Its ``step`` ends a step, and it is probed
            for how much each step weighs. Taken from ``model`` if that is a pipeline.
        guidance: Guidance scale, to be recorded.
        memory_bytes: Bound on the memory of the windows.
        resume: A measurement to which these generations are added; their seeds follow its own.

    Returns:
        The sensitivity. Seeds are 0, 1, ... or those after the last of ``resume``.

    Raises:
        OptionError: For arguments that make no sense.
        SensitivityError: If generations differ in their number of steps, or ``resume`` is of something else.
    """
    _check(model, generations, max_interval, calls_per_step, memory_bytes)
    pipeline = is_pipeline(model)
    denoiser = denoiser_of(model) if pipeline else model
    scheduler = model.scheduler if pipeline else scheduler
    first = max(resume.info.seeds) + 1 if resume else 0
    seeds = range(first, first + generations)
    recorder = Recorder(Clock(automatic=scheduler is None), calls_per_step, ErrorEntries(max_interval), memory_bytes)
    started = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(_observed(denoiser, recorder))
        tie = stack.enter_context(_tied(scheduler, recorder.clock)) if scheduler is not None else None
        progress = stack.enter_context(progress_bar())
        steps = [_run(generate, recorder, seed) for seed in progress.track(seeds, description="calibrating")]
    if len(set(steps)) != 1:
        raise SensitivityError(f"generations must all have the same number of steps; they had {sorted(set(steps))}")
    weights = probe_step_weights(scheduler, *tie.arguments) if tie is not None else np.ones(steps[0])
    measured = _assemble(recorder, steps[0], seeds, scheduler, weights, guidance, time.perf_counter() - started)
    return merge(resume, measured) if resume else measured


def _check(model: Any, generations: int, max_interval: int, calls_per_step: int, memory_bytes: int) -> None:
    if hasattr(model, "_orig_mod"):
        raise OptionError("calibrate takes the model before torch.compile; pass compiled._orig_mod and call that")
    if not is_pipeline(model) and not isinstance(model, torch.nn.Module):
        raise OptionError(f"model is a {type(model).__name__}; pass a torch.nn.Module or a diffusers pipeline")
    counts = {"generations": generations, "max_interval": max_interval, "calls_per_step": calls_per_step}
    for name, value in {**counts, "memory_bytes": memory_bytes}.items():
        if value < 1:
            raise OptionError(f"{name} is {value}; it must be at least 1")


@contextmanager
def _observed(denoiser: torch.nn.Module, recorder: Recorder) -> Iterator[None]:
    """Compiles the denoiser's forward in observe mode for a while."""
    backend = functools.partial(soda, options={"observer": recorder})
    compiled = compile_forward(denoiser, backend)
    try:
        yield
    finally:
        restore_forward(denoiser, compiled)


@contextmanager
def _tied(scheduler: Any, clock: Clock) -> Iterator[SchedulerTie]:
    tie = SchedulerTie(scheduler, clock).tie()
    try:
        yield tie
    finally:
        tie.untie()


def _run(generate: Callable[[int], Any], recorder: Recorder, seed: int) -> int:
    recorder.clock.begin()
    with torch.no_grad():
        generate(seed)
    if not recorder.steps:
        raise SensitivityError("generate(seed) did not call the model; it must call the very object that is calibrated")
    return recorder.steps


def _assemble(
    recorder: Recorder,
    steps: int,
    seeds: range,
    scheduler: Any,
    weights: Floats,
    guidance: float | None,
    seconds: float,
) -> Sensitivity:
    structure = recorder.structure
    assert structure is not None
    mean, variance = _tables(recorder, steps, len(structure.regions))
    timestep_input, timesteps = _find_timestep(recorder, scheduler)
    info = SensitivityInfo(
        fingerprint=structure.fingerprint,
        regions=structure.region_names,
        steps=steps,
        max_interval=recorder.entries.max_interval,
        generations=len(seeds),
        samples=recorder.samples,
        seeds=tuple(seeds),
        timesteps=timesteps,
        timestep_input=timestep_input,
        scheduler=type(scheduler).__name__ if scheduler is not None else None,
        scheduler_config=scheduler_config(scheduler) if scheduler is not None else None,
        scheduler_digest=scheduler_digest(scheduler) if scheduler is not None else None,
        guidance=guidance,
        calls_per_step=recorder.calls_in_a_step,
        tokens={"stride": recorder.stride},
        versions={name: importlib.metadata.version(name) for name in ("torch", "soda-compile")},
        notes={"seconds": f"{seconds:.1f}", "device": str(structure.regions[0].cuts[0].device)},
    )
    region_flops = np.array([region.flops for region in structure.regions], dtype=np.float64)
    return Sensitivity(info, mean, variance, weights, region_flops, float(structure.flops))


def _tables(recorder: Recorder, steps: int, regions: int) -> tuple[dict[str, Any], dict[str, Any]]:
    entries = len(recorder.entries.weights)
    mean = np.full((len(METRICS), steps, regions, entries), np.nan)
    variance = mean.copy()
    for (step, region), moments in recorder.moments.items():
        known = moments.count > 0
        mean[:, step, region][known] = moments.mean[known]
        variance[:, step, region][known] = moments.deviation[known] / moments.count[known]
    tables: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for target, values in zip(tables, (mean, variance), strict=True):
        for metric, rows in zip(METRICS, values, strict=True):
            for operator, table in recorder.entries.split(rows).items():
                target[f"{metric}.{operator}"] = np.ascontiguousarray(table, dtype=np.float32)
    return tables


def _find_timestep(recorder: Recorder, scheduler: Any) -> tuple[str | None, tuple[float, ...] | None]:
    """The input that carries the timestep: the one that follows the scheduler, or else runs one way."""
    known = [float(value) for value in scheduler.timesteps] if scheduler is not None else None
    series = {
        name: [numbers[name] for numbers in recorder.inputs]
        for name in recorder.inputs[0]
        if all(name in numbers for numbers in recorder.inputs)
    }
    for name, values in series.items():
        rises = np.diff(values)
        if known is not None and len(values) == len(known) and np.allclose(values, known, rtol=1e-2, atol=1e-3):
            return name, tuple(values)
        if known is None and len(rises) and (bool((rises > 0).all()) or bool((rises < 0).all())):
            return name, tuple(values)
        if known is None and len(rises) > 1 and not rises[::2].any() and rises[1::2].any():
            raise SensitivityError(
                f"input {name!r} has each value twice in a row: if guidance makes a second call, pass calls_per_step=2"
            )
    return None, tuple(known) if known is not None else None
