"""Measures offline how sensitive every step and region is to being skipped (SODA's OFS, arXiv 2603.07057)."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from soda_compile.backend.entry import soda
from soda_compile.capture.forward import compile_forward, own_holder
from soda_compile.compiler.prune_flops import prune_flops
from soda_compile.errors import OptionError, SensitivityError
from soda_compile.integrations.base import Framework, SamplerHook, Stage, denoiser_of, denoisers_of, framework_of
from soda_compile.measure.gram import ErrorEntries, Floats
from soda_compile.measure.profile_store import versions
from soda_compile.measure.recorder import Recorder
from soda_compile.plans.pruning import SCORES
from soda_compile.plans.sensitivity import METRICS, Sensitivity, SensitivityInfo, merge
from soda_compile.runtime.clock import Clock
from soda_compile.storage.progress import progress_bar


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
    prune_scores: Sequence[str] = (),
    resume: Sensitivity | None = None,
    framework: Framework | None = None,
) -> Sensitivity:
    """Runs generations of the original model and measures the error of every reuse and forecast, in one pass.

    Memory: windows of ``2 * max_interval`` past values of each region in each stream, and for the score drift
    ``max_interval`` past values of its carries, all together at most ``memory_bytes``; where they are larger, every
    k-th token is kept and k is recorded. Beside them, one region at a time is scored, in a few float64 copies of its
    window.

    Args:
        model: The denoiser (not compiled), or a pipeline, such as one of diffusers.
        generate: Runs one whole generation from a seed, calling ``model``. What it returns is not used. Rows of a
            batch count as samples.
        generations: How often to call it.
        max_interval: Longest time, in steps, that a value may be kept.
        calls_per_step: Denoiser calls in a step of a loop without a scheduler: 2 if guidance makes a second call.
        scheduler: The framework's scheduler that a hand-written loop uses. Its ``step`` ends a step, and it is probed
            for how much each step weighs. Taken from ``model`` if that is a pipeline.
        guidance: Guidance scale, to be recorded.
        memory_bytes: Bound on the memory of the windows.
        prune_scores: Scores by which tokens can be ranked ("feature_mean", "drift", "random"): for each, the error of
            pruning at every rate is measured as well.
        resume: A measurement to which these generations are added; their seeds follow its own.
        framework: What hosts the model; by default the built-in one that knows the model or the scheduler.

    Returns:
        The sensitivity. Seeds are 0, 1, ... or those after the last of ``resume``.

    Raises:
        OptionError: For arguments that make no sense.
        SensitivityError: If generations differ in their number of steps, or ``resume`` is of something else.
    """
    _check(model, generations, max_interval, calls_per_step, memory_bytes)
    scores = _check_scores(prune_scores, resume)
    framework = framework or framework_of(model, scheduler)
    denoiser = denoiser_of(model, framework)
    first = max(resume.info.seeds) + 1 if resume else 0
    measured = _measure(
        {"model": denoiser},
        _sampler_of(model, framework, scheduler),
        framework,
        generate,
        range(first, first + generations),
        _Settings(max_interval, calls_per_step, guidance, memory_bytes, scores),
    )
    if not measured:
        raise SensitivityError("generate(seed) did not call the model; it must call the very object that is calibrated")
    return merge(resume, measured["model"]) if resume else measured["model"]


def calibrate_denoisers(
    pipe: Any,
    generate: Callable[[int], Any],
    *,
    generations: int = 10,
    max_interval: int = 10,
    guidance: float | None = None,
    memory_bytes: int = 2**30,
    prune_scores: Sequence[str] = (),
    framework: Framework | None = None,
) -> dict[str, Sensitivity]:
    """Measures all denoisers of a pipeline in the same generations, each over the steps it is called for.

    See ``calibrate`` for the arguments and errors; ``memory_bytes`` is shared.

    Returns:
        The sensitivity by component name, such as ``transformer_2``; denoisers that were never called are left out.
    """
    _check(pipe, generations, max_interval, 1, memory_bytes)
    framework = framework or framework_of(pipe)
    denoisers = denoisers_of(pipe, framework)
    scores = _check_scores(prune_scores, None)
    settings = _Settings(max_interval, 1, guidance, memory_bytes // len(denoisers), scores)
    sampler = _sampler_of(pipe, framework)
    measured = _measure(denoisers, sampler, framework, generate, range(generations), settings)
    if not measured:
        raise SensitivityError(f"generate(seed) called none of {', '.join(denoisers)} of the calibrated pipeline")
    return measured


@dataclass(frozen=True)
class _Settings:
    """What does not depend on the denoiser."""

    max_interval: int
    calls_per_step: int
    guidance: float | None
    memory_bytes: int
    prune_scores: tuple[str, ...]

    def recorder(self, automatic: bool) -> Recorder:
        entries = ErrorEntries(self.max_interval)
        clock = Clock(automatic=automatic)
        return Recorder(clock, self.calls_per_step, entries, self.memory_bytes, self.prune_scores)


def _measure(
    denoisers: Mapping[str, torch.nn.Module],
    sampler: Any,
    framework: Framework | None,
    generate: Callable[[int], Any],
    seeds: range,
    settings: _Settings,
) -> dict[str, Sensitivity]:
    recorders = {name: settings.recorder(automatic=sampler is None) for name in denoisers}
    hook: SamplerHook | None = None
    stages: dict[str, Stage] = {}
    weights: Floats | None = None
    started = time.perf_counter()
    with ExitStack() as stack:
        if sampler is not None and framework is not None:
            hook = framework.attach(sampler)
            stack.callback(hook.detach)
            stages = {name: Stage(hook, recorder.clock) for name, recorder in recorders.items()}
        for name, denoiser in denoisers.items():
            stack.enter_context(_observed(denoiser, framework, recorders[name], stages.get(name)))
        progress = stack.enter_context(progress_bar())
        steps = [_run(generate, recorders, seed) for seed in progress.track(seeds, description="calibrating")]
        if len(set(map(str, steps))) != 1:
            counts = sorted({sum(each.values()) for each in steps})
            raise SensitivityError(f"generations must all have the same number of steps; they had {counts}")
        if hook is not None and any(steps[0].values()):
            _require_counted(hook, steps[0], recorders)
            weights = hook.step_weights()
    seconds = time.perf_counter() - started
    found = {}
    for name, recorder in recorders.items():
        if count := steps[0][name]:
            first = stages[name].called_at if name in stages else 0
            part = _Part(first, count, hook, np.ones(count) if weights is None else weights[first : first + count])
            found[name] = _assemble(recorder, part, seeds, settings.guidance, seconds)
    return found


@dataclass(frozen=True, eq=False)
class _Part:
    """The steps of the schedule in which a denoiser was called, and what is known of them."""

    first: int
    steps: int
    hook: SamplerHook | None
    weights: Floats

    @property
    def timesteps(self) -> list[float] | None:
        return None if self.hook is None else self.hook.timesteps[self.first : self.first + self.steps]

    @property
    def notes(self) -> dict[str, str]:
        """Where the part lies, if it is not the whole schedule."""
        whole = self.steps if self.hook is None else len(self.hook.timesteps)
        partial = {"first_step": str(self.first), "schedule_steps": str(whole)}
        return partial if self.steps < whole else {}


def _require_counted(hook: SamplerHook, steps: Mapping[str, int], recorders: Mapping[str, Recorder]) -> None:
    most = max(recorder.calls_in_a_step for recorder in recorders.values())
    if max(steps.values()) == 1 and len(hook.timesteps) > 1 and most > 2:
        raise SensitivityError(
            f"all denoiser calls of a generation came before {hook.name}.step was called, so the steps "
            "cannot be counted; calibrate the denoiser itself, with a loop of your own"
        )


def _check(model: Any, generations: int, max_interval: int, calls_per_step: int, memory_bytes: int) -> None:
    if hasattr(model, "_orig_mod"):
        raise OptionError("calibrate takes the model before torch.compile; pass compiled._orig_mod and call that")
    counts = {"generations": generations, "max_interval": max_interval, "calls_per_step": calls_per_step}
    for name, value in {**counts, "memory_bytes": memory_bytes}.items():
        if value < 1:
            raise OptionError(f"{name} is {value}; it must be at least 1")


def _sampler_of(model: Any, framework: Framework | None, scheduler: Any = None) -> Any:
    """Return the pipeline's sampler, or the one that the user named."""
    if framework is None and scheduler is not None:
        raise OptionError(
            f"scheduler is a {type(scheduler).__name__}, which no framework at hand can follow; pass framework=..., or "
            "scheduler=None to count calls"
        )
    return framework.sampler_of(model) if framework is not None and framework.is_pipeline(model) else scheduler


def _check_scores(scores: Sequence[str], resume: Sensitivity | None) -> tuple[str, ...]:
    if isinstance(scores, str) or any(score not in SCORES for score in scores):
        raise OptionError(f"prune_scores is {scores!r}; it must be a sequence of {', '.join(SCORES)}")
    ordered = tuple(score for score in SCORES if score in scores)
    if resume is not None and resume.prune_scores != ordered:
        raise OptionError(f"prune_scores is {ordered}, but what is resumed was measured with {resume.prune_scores}")
    return ordered


def _observed(
    denoiser: torch.nn.Module, framework: Framework | None, recorder: Recorder, stage: Stage | None
) -> AbstractContextManager[Any]:
    """Compiles the denoiser's forward in observe mode for a while."""
    backend = functools.partial(soda, options={"observer": recorder})
    hosted = framework.around_calls(denoiser) if framework else nullcontext
    holders = framework.holders if framework else own_holder

    @contextmanager
    def around() -> Iterator[None]:
        if stage is not None:
            stage.place()
        with hosted():
            yield

    return compile_forward(denoiser, backend, around, holders)


def _run(generate: Callable[[int], Any], recorders: Mapping[str, Recorder], seed: int) -> dict[str, int]:
    """Runs one generation; returns the number of steps in which each denoiser was called."""
    for recorder in recorders.values():
        recorder.begin(seed)
    with torch.no_grad():
        generate(seed)
    return {name: recorder.steps for name, recorder in recorders.items()}


def _assemble(
    recorder: Recorder,
    part: _Part,
    seeds: range,
    guidance: float | None,
    seconds: float,
) -> Sensitivity:
    structure, hook = recorder.structure, part.hook
    assert structure is not None
    mean, variance = _tables(recorder, part.steps, len(structure.regions))
    timestep_input, timesteps = _find_timestep(recorder, part.timesteps)
    info = SensitivityInfo(
        fingerprint=structure.fingerprint,
        regions=structure.region_names,
        steps=part.steps,
        max_interval=recorder.entries.max_interval,
        generations=len(seeds),
        samples=recorder.samples,
        seeds=tuple(seeds),
        timesteps=timesteps,
        timestep_input=timestep_input,
        scheduler=hook.name if hook is not None else None,
        scheduler_config=hook.config if hook is not None else None,
        scheduler_digest=hook.digest if hook is not None else None,
        guidance=guidance,
        calls_per_step=recorder.calls_in_a_step,
        tokens={"stride": recorder.stride},
        versions=versions(),
        notes={"seconds": f"{seconds:.1f}", "device": str(structure.regions[0].cuts[0].device), **part.notes},
    )
    region_flops = np.array([region.flops for region in structure.regions], dtype=np.float64)
    removed = prune_flops(structure) if recorder.prune_scores else None
    return Sensitivity(info, mean, variance, part.weights, region_flops, float(structure.flops), removed)


def _tables(recorder: Recorder, steps: int, regions: int) -> tuple[dict[str, Any], dict[str, Any]]:
    mean = np.full((len(METRICS), steps, regions, recorder.width), np.nan)
    variance = mean.copy()
    for (step, region), moments in recorder.moments.items():
        known = moments.count > 0
        mean[:, step, region][known] = moments.mean[known]
        variance[:, step, region][known] = moments.deviation[known] / moments.count[known]
    tables: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for target, values in zip(tables, (mean, variance), strict=True):
        for metric, rows in zip(METRICS, values, strict=True):
            for operator, table in recorder.split(rows).items():
                target[f"{metric}.{operator}"] = np.ascontiguousarray(table, dtype=np.float32)
    return tables


def _find_timestep(recorder: Recorder, known: list[float] | None) -> tuple[str | None, tuple[float, ...] | None]:
    """The input that carries the timestep: the one that follows the scheduler, or else runs one way."""
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
