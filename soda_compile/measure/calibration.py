"""Measures offline how sensitive every step and region is to being skipped (SODA's OFS, arXiv 2603.07057)."""

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from soda_compile.backend.entry import soda
from soda_compile.capture.forward import compile_forward, own_holder
from soda_compile.distributed.modules import unwrapped
from soda_compile.errors import OptionError, SensitivityError
from soda_compile.integrations.base import (
    Framework,
    SamplerHook,
    Stage,
    around_calls,
    denoiser_of,
    denoisers_of,
    framework_of,
)
from soda_compile.measure.error_accumulator import ErrorAccumulator
from soda_compile.measure.gram import ErrorEntries, Floats
from soda_compile.measure.observation import Observation, observe, sensitivities
from soda_compile.measure.ranks import Ranks
from soda_compile.plans.pruning import SCORES
from soda_compile.plans.sensitivity import Sensitivity, merge
from soda_compile.runtime.call_counter import CallCounter
from soda_compile.runtime.clock import Clock
from soda_compile.storage.progress import progress_bar


def calibrate(
    model: Any,
    generate: Callable[[int], Any],
    *,
    generations: int | None = None,
    seeds: Iterable[int] | None = None,
    max_interval: int = 10,
    calls_per_step: int = 1,
    scheduler: Any = None,
    guidance: float | None = None,
    memory_bytes: int = 2**30,
    prune_scores: Sequence[str] = (),
    resume: Sensitivity | None = None,
    framework: Framework | None = None,
    process_group: Any = None,
    model_group: Any = None,
) -> Sensitivity:
    """Run generations of the original model and measure the error of every reuse and forecast, in one pass.

    Memory: ``2 * max_interval`` past values of each region in each branch of guidance, and for the score drift
    ``max_interval`` past values of its carries, in all at most ``memory_bytes``; where they are larger, every k-th
    token is kept and k is recorded. Beside them, one region at a time is scored, in a few float64 copies of its past
    values.

    Many processes can measure, all called with the same arguments: see ``process_group`` and ``model_group``, which may
    be combined. All get the same sensitivity, and where one fails, it is an error on all.

    Args:
        model: The denoiser (not compiled), or a pipeline, such as one of diffusers.
        generate: Runs one whole generation from a seed, calling ``model``. What it returns is not used. Rows of a
            batch count as samples.
        generations: How often to call it, 10 times by default. Seeds are 0, 1, ... or those after the last of
            ``resume``.
        seeds: The seeds instead, such as ``range(8, 16)`` for a job that measures these alone; ``merge`` joins what
            several jobs measured.
        max_interval: Longest time, in steps, that a value may be kept. For plans that compute fewer than a fifth of the
            steps take twice the mean distance of computed steps, ``Goal(speedup=8).reach()``: with less they come out
            evenly spaced, and further off.
        calls_per_step: Denoiser calls in a step of a loop without a scheduler: 2 if guidance makes a second call.
        scheduler: The framework's scheduler that a hand-written loop uses. Its ``step`` ends a step, and it is probed
            for how much each step weighs. Taken from ``model`` if that is a pipeline.
        guidance: Guidance scale, to be recorded.
        memory_bytes: Bound on the memory of past values.
        prune_scores: Scores by which tokens can be ranked ("feature_mean", "drift", "random"): for each, the error of
            pruning at every rate is measured as well.
        resume: A measurement to which these generations are added; their seeds follow its own.
        framework: What hosts the model; by default the built-in one that knows the model or the scheduler.
        process_group: A process group of ``torch.distributed`` whose ranks run generations of their own: each takes its
            share of the seeds, and what all measured is merged in the order of the ranks.
        model_group: One whose ranks share each generation, as under context or tensor parallelism: each sees a part of
            every value, and what belongs to one value is added up before errors are made of it.

    Returns:
        The sensitivity, of all ranks if there are several.

    Raises:
        OptionError: For arguments that make no sense.
        SensitivityError: If generations differ in their number of steps, or ``resume`` is of something else.
        DistributedError: If ranks were given different arguments, or another rank failed, ended or gave no answer
            within the timeout of its process group. With a ``model_group`` a rank that fails raises at once; the
            others are inside the model then, whose own collectives end with an error of theirs.
    """
    model = unwrapped(model)
    seeds = _seeds(generations, seeds, resume)
    _check(model, len(seeds), max_interval, calls_per_step, memory_bytes)
    scores = _check_scores(prune_scores, resume)
    ranks = Ranks.of(process_group, model_group)
    mine = ranks.share_of(seeds)
    framework = framework or framework_of(model, scheduler)
    denoiser = denoiser_of(model, framework)
    sampler = _sampler_of(model, framework, scheduler)
    clock, entries, counter = Clock(automatic=sampler is None), ErrorEntries(max_interval), CallCounter(calls_per_step)
    errors = ErrorAccumulator(clock, counter, entries, memory_bytes, scores, ranks.reduction)

    def measure() -> Sensitivity:
        observed = {"model": Observation(errors)}
        modules = {"model": denoiser}
        measured = _measure(modules, observed, sampler, framework, generate, mine, guidance, shown=ranks.first)
        if not measured:
            raise SensitivityError(
                "generate(seed) did not call the model; it must call the very object that is calibrated"
            )
        return measured["model"]

    limits = {"max_interval": max_interval, "calls_per_step": calls_per_step, "memory_bytes": memory_bytes}
    ranks.require_same({"seeds": tuple(seeds), "guidance": guidance, "prune_scores": scores, **limits})
    measured = ranks.merged(measure)
    return merge(resume, measured) if resume else measured


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
    """Measure all denoisers of a pipeline in the same generations, each over the steps it is called for.

    See ``calibrate`` for the arguments and errors; ``memory_bytes`` is shared.

    Returns:
        The sensitivity by component name, such as ``transformer_2``; denoisers that were never called are left out.
    """
    _check(pipe, generations, max_interval, 1, memory_bytes)
    scores = _check_scores(prune_scores, None)
    framework = framework or framework_of(pipe)
    denoisers = denoisers_of(pipe, framework)
    sampler = _sampler_of(pipe, framework)
    observed = observe(denoisers, max_interval, memory_bytes, counted=sampler is None, scores=scores)
    measured = _measure(denoisers, observed, sampler, framework, generate, range(generations), guidance)
    if not measured:
        raise SensitivityError(f"generate(seed) called none of {', '.join(denoisers)} of the calibrated pipeline")
    return measured


def _measure(
    denoisers: Mapping[str, torch.nn.Module],
    observed: Mapping[str, Observation],
    sampler: Any,
    framework: Framework | None,
    generate: Callable[[int], Any],
    seeds: Sequence[int],
    guidance: float | None,
    *,
    shown: bool = True,
) -> dict[str, Sensitivity]:
    hook: SamplerHook | None = None
    weights: Floats | None = None
    started = time.perf_counter()
    with ExitStack() as stack:
        if sampler is not None and framework is not None:
            hook = framework.attach(sampler)
            stack.callback(hook.detach)
        for name, module in denoisers.items():
            if hook is not None and framework is not None:
                observed[name].stage = Stage(hook, observed[name].errors.clock)
                stack.callback(framework.name_branches(module, observed[name].errors.clock))
            stack.enter_context(_compiled(module, observed[name], framework))
        progress = stack.enter_context(progress_bar(shown=shown))
        steps = []
        for seed in progress.track(seeds, description="calibrating"):
            for denoiser in observed.values():
                denoiser.errors.begin(seed)
            with torch.no_grad():
                generate(seed)
            steps.append([denoiser.errors.steps for denoiser in observed.values()])
        if steps.count(steps[0]) != len(steps):
            counts = sorted(set(map(sum, steps)))
            raise SensitivityError(f"generations must all have the same number of steps; they had {counts}")
        if hook is not None and any(steps[0]):
            most_calls = max(denoiser.errors.calls_in_a_step for denoiser in observed.values())
            if max(steps[0]) == 1 and len(hook.timesteps) > 1 and most_calls > 2:
                raise SensitivityError(
                    f"all denoiser calls of a generation came before {hook.name}.step was called, so the steps "
                    "cannot be counted; calibrate the denoiser itself, with a loop of your own"
                )
            weights = hook.step_weights()
    return sensitivities(observed, hook, weights, seeds, guidance, time.perf_counter() - started)


def _seeds(generations: int | None, seeds: Iterable[int] | None, resume: Sensitivity | None) -> Sequence[int]:
    used = resume.info.seeds if resume else ()
    if seeds is None:
        first = max(used, default=-1) + 1
        return range(first, first + (10 if generations is None else generations))
    if generations is not None:
        raise OptionError(f"give generations={generations} or seeds, not both")
    listed = tuple(seeds)
    if not all(isinstance(seed, int) for seed in listed) or len(set(listed)) != len(listed):
        raise OptionError(f"seeds is {listed}; it must be integers that are all different, such as range(8)")
    if again := sorted(set(listed) & set(used)):
        raise OptionError(f"the seeds {again} were used in what is resumed; pass others")
    return listed


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


def _compiled(
    denoiser: torch.nn.Module, observation: Observation, framework: Framework | None
) -> AbstractContextManager[Any]:
    """Compile the denoiser's forward in observe mode for a while."""
    backend = functools.partial(soda, options={"observer": observation.errors})
    hosted = around_calls(denoiser, framework)
    holders = framework.holders if framework else own_holder

    @contextmanager
    def around() -> Iterator[None]:
        if observation.stage is not None:
            observation.stage.place()
        with hosted():
            yield

    return compile_forward(denoiser, backend, around, holders)
