"""Runs a plan against the original: the same seeds with and without it, and how far the samples are apart."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from soda_compile.acceleration.accelerated import Acceleration
from soda_compile.acceleration.handle import HANDLE, restore
from soda_compile.acceleration.measurement_folder import Verified
from soda_compile.acceleration.measuring_ahead import Runs
from soda_compile.acceleration.say import say
from soda_compile.acceleration.searched_plans import SearchedPlans
from soda_compile.errors import PlanError, SensitivityError
from soda_compile.integrations.diffusers.scheduler_hook import SchedulerHook
from soda_compile.runtime.clock import Clock
from soda_compile.storage.progress import progress_bar


def install_verified(handle: Acceleration, source: SearchedPlans, runs: Runs, generations: int) -> None:
    """Accelerate a pipeline, run generations before and after, and record how far they are apart.

    Args:
        handle: Of the pipeline.
        source: Of its plans.
        runs: Generations to run, with seeds that were not measured, and that no plan was tried on.
        generations: How many.

    Raises:
        PlanError: If the generations are not covered by a plan.
        SensitivityError: If a generation runs no step of the pipeline's scheduler.
    """
    pipe = handle.pipe
    fresh = source.first_fresh_seed()
    first = runs.generations if fresh is None else fresh
    seeds = range(first, first + generations)
    original = original_samples(pipe.scheduler, runs.generate, seeds)
    setattr(pipe, HANDLE, handle.install())
    driven = handle.driven(pipe.scheduler)
    assert driven is not None
    try:
        planned = last_samples(driven.hook, runs.generate, seeds)
        if not driven.plans:
            raise PlanError(f"there is nothing to verify, the generations run without a plan: {driven.reason}")
    except BaseException:
        restore(pipe)
        raise
    verified = compare(source.request.name, seeds, planned, original)
    source.record(verified)
    say(f"verified: {verified}")


def original_samples(scheduler: Any, generate: Callable[[int], Any], seeds: range) -> list[torch.Tensor]:
    """Return the last sample of each generation of a pipeline that is not accelerated; see ``last_samples``."""
    hook = SchedulerHook.attached(scheduler, Clock())
    try:
        return last_samples(hook, generate, seeds)
    finally:
        hook.detach()


def last_samples(hook: SchedulerHook, generate: Callable[[int], Any], seeds: range) -> list[torch.Tensor]:
    """Run generations, and return the sample that the scheduler's last step gave in each.

    Args:
        hook: The scheduler's.
        generate: Runs one generation from a seed.
        seeds: Those to run.

    Raises:
        SensitivityError: If a generation runs no step of this scheduler.
    """
    samples = []
    with progress_bar() as progress:
        for seed in progress.track(seeds, description="generating to compare"):
            with _last(hook) as last, torch.no_grad():
                generate(seed)
            if not last:
                raise SensitivityError(f"generate({seed}) ran no step of {hook.name}, so there is no sample to compare")
            samples.append(last[0].detach().clone())
    return samples


@contextmanager
def _last(hook: SchedulerHook) -> Iterator[list[torch.Tensor]]:
    """Give a list that holds the sample of the last step."""
    last: list[torch.Tensor] = []

    def keep(result: Any) -> None:
        last[:] = [result[0] if isinstance(result, tuple) else result.prev_sample]

    hook.stepped = keep
    try:
        yield last
    finally:
        hook.stepped = None


def compare(request: str, seeds: range, planned: list[torch.Tensor], original: list[torch.Tensor]) -> Verified:
    """Return how far the samples of generations are from those without the plan, of the same seeds."""
    pairs = zip(planned, original, strict=True)
    errors = tuple(float((one.double() - other.double()).norm() / other.double().norm()) for one, other in pairs)
    return Verified(request, tuple(seeds), errors)
