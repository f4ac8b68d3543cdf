"""Generations of the original model, recorded so that any part of them can be run again under a plan."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from soda_compile.errors import OptionError, SensitivityError
from soda_compile.integrations.base import Framework, SamplerStep, denoiser_of, framework_of
from soda_compile.measure.affine_maps import OutputMap, StateInput, is_same
from soda_compile.storage.progress import progress_bar


@dataclass(frozen=True, eq=False)
class DenoiserCall:
    """One call of the denoiser: its arguments, and the first tensor that it returned."""

    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    output: torch.Tensor


@dataclass(frozen=True, eq=False)
class RecordedStep:
    """One step of the original generation.

    Attributes:
        calls: Its denoiser calls, one for each branch of guidance that has its own.
        scheduler: The scheduler's step.
    """

    calls: tuple[DenoiserCall, ...]
    scheduler: SamplerStep

    @cached_property
    def inputs(self) -> tuple[StateInput, ...]:
        """Return for each call which of its arguments is made of the sample, and how.

        Raises:
            SensitivityError: If that cannot be told.
        """
        return tuple(StateInput.find(each.arguments, each.options, self.scheduler.sample) for each in self.calls)

    @cached_property
    def output_map(self) -> OutputMap:
        """Return how the scheduler's input is made of the outputs of the calls.

        Raises:
            SensitivityError: If that cannot be told.
        """
        return OutputMap.find([each.output for each in self.calls], self.scheduler.model_output)


@dataclass(frozen=True, eq=False)
class Recording:
    """Generations of the original model.

    Attributes:
        module: The denoiser.
        framework: What hosts its sampler.
        generations: By generation, by step.
        seeds: Of the generations.
        seconds: Time that recording took.
    """

    module: torch.nn.Module
    framework: Framework
    generations: tuple[tuple[RecordedStep, ...], ...]
    seeds: tuple[int, ...]
    seconds: float

    @property
    def steps(self) -> int:
        """Return the number of steps of each generation."""
        return len(self.generations[0])

    @property
    def samples(self) -> int:
        """Return the number of samples of all generations."""
        return sum(len(steps[0].scheduler.sample) for steps in self.generations)


def record(
    model: Any,
    generate: Callable[[int], Any],
    *,
    generations: int = 4,
    first_seed: int = 0,
    scheduler: Any = None,
    framework: Framework | None = None,
) -> Recording:
    """Run generations of the original model and keep what it was called with, and each step of the scheduler.

    ``simulate``, ``compare`` and ``fit`` run parts of them again under plans. The sample must follow from the
    scheduler alone, so generations that change it between steps (inpainting, callbacks) cannot be recorded.

    Args:
        model: The denoiser (not compiled), or a pipeline of diffusers with one denoiser.
        generate: Runs one whole generation from a seed, calling ``model``. Rows of a batch count as samples.
        generations: How often to call it.
        first_seed: Of the first generation; the others follow.
        scheduler: The diffusers scheduler that a hand-written loop uses. Taken from ``model`` if that is a pipeline.
        framework: What hosts the model; by default the built-in one that knows the model or the scheduler.

    Raises:
        OptionError: If there is no scheduler, or the arguments make no sense.
        SensitivityError: If generations differ in their number of steps, the denoiser is not called in each, or
            they cannot be run again from another sample. The first generation tells.
    """
    if generations < 1:
        raise OptionError(f"generations is {generations}; it must be at least 1")
    if hasattr(model, "_orig_mod"):
        raise OptionError("record takes the model before torch.compile; pass compiled._orig_mod and call that")
    framework = framework or framework_of(model, scheduler)
    module = denoiser_of(model, framework)
    if framework is not None and framework.is_pipeline(model):
        scheduler = framework.sampler_of(model)
    if scheduler is None or framework is None:
        raise OptionError("plans are run again step by step, which needs the noise scheduler; pass scheduler=...")
    started = time.perf_counter()
    recorder, recorded = _Recorder(), []
    seeds = range(first_seed, first_seed + generations)
    with (
        module.register_forward_hook(recorder.called, with_kwargs=True),
        framework.recorded_steps(scheduler, recorder.stepped),
        torch.no_grad(),
        progress_bar() as progress,
    ):
        for seed in progress.track(seeds, description="recording"):
            recorder.steps = []
            generate(seed)
            recorded.append(tuple(recorder.steps))
            _check(recorded, type(scheduler).__name__)
    return Recording(module, framework, tuple(recorded), tuple(seeds), time.perf_counter() - started)


@dataclass(eq=False)
class _Recorder:
    """Takes denoiser calls and steps of a scheduler as they come."""

    steps: list[RecordedStep] = field(default_factory=list)
    _calls: list[DenoiserCall] = field(default_factory=list)
    _copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # of the last call

    def called(self, module: torch.nn.Module, arguments: Any, options: Any, result: Any) -> None:
        """Take a call of the denoiser."""
        copies, self._copies = self._copies, {}

        def kept(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            given, copied = copies.get(id(value), (None, None))
            # Most arguments, such as texts, are the same in all steps and need not be copied for each.
            if given is not value or copied is None or not torch.equal(copied, value):
                copied = value.clone()
            self._copies[id(value)] = (value, copied)
            return copied

        options = {name: kept(value) for name, value in options.items()}
        self._calls.append(DenoiserCall(tuple(map(kept, arguments)), options, first_tensor(result).clone()))

    def stepped(self, step: SamplerStep) -> None:
        """Take a step of the scheduler."""
        self.steps.append(RecordedStep(tuple(self._calls), step))
        self._calls = []


def first_tensor(result: Any) -> torch.Tensor:
    """Return the first tensor of what a denoiser returned."""
    while not isinstance(result, torch.Tensor):
        result = next(iter(result.values() if isinstance(result, Mapping) else result))
    return result


def _check(recorded: Sequence[Sequence[RecordedStep]], scheduler: str) -> None:
    """Check generations that were recorded, the last one throughout."""
    counts = sorted({len(steps) for steps in recorded})
    if counts == [0]:
        raise SensitivityError(f"generate(seed) took no step of {scheduler}; it must use the very object that is given")
    if len(counts) > 1:
        raise SensitivityError(f"generations must all have the same number of steps; they had {counts}")
    for number, step in enumerate(recorded[-1]):
        if not step.calls:
            raise SensitivityError(
                f"the denoiser was not called before step {number} of {scheduler}; only schedules in which each step "
                "has its calls can be run again"
            )
    _ = recorded[-1][0].inputs, recorded[-1][0].output_map  # which raise before more is recorded in vain
    for number, (step, after) in enumerate(itertools.pairwise(recorded[-1]), 1):
        if not is_same(step.scheduler.following, after.scheduler.sample):
            raise SensitivityError(
                f"the sample is changed between {scheduler} and step {number} (inpainting, or a callback?), so a "
                "generation cannot be run again from another sample; plan without simulating and fitting"
            )
