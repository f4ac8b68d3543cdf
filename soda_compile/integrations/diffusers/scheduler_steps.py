"""Steps of a diffusers noise scheduler, recorded so that they can be taken again from other samples."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from soda_compile.integrations.diffusers.scheduler_copies import untied_copy
from soda_compile.integrations.diffusers.scheduler_hook import SchedulerHook
from soda_compile.runtime.clock import Clock


@dataclass(frozen=True, eq=False)
class SchedulerStep:
    """One step that a scheduler took.

    Attributes:
        scheduler: A copy from before the step; it is tied to nothing, and never stepped itself.
        model_output: What the scheduler was given for the denoiser's output.
        sample: The sample before the step, [batch, ...].
        following: The sample after it.
        timestep: As the scheduler was given it.
        options: Further arguments of the step, without generators.
        generators: Copies of the generators that it was given, from before the step.
        random_state: Of torch's generator on the host, from before the step.
    """

    scheduler: Any
    model_output: torch.Tensor
    sample: torch.Tensor
    following: torch.Tensor
    timestep: Any
    options: Mapping[str, Any]
    generators: Any
    random_state: torch.Tensor

    def fresh_sampler(self) -> Any:
        """Return a scheduler that is about to take this step."""
        return copy.deepcopy(self.scheduler)

    def take(self, sampler: Any, model_output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Take the step again, with the same noise, and return the sample after it.

        Args:
            sampler: A scheduler at this step; it goes on to the next.
            model_output: Instead of the recorded one.
            sample: Instead of the recorded one.
        """
        options = dict(self.options)
        if self.generators is not None:
            options["generator"] = _copied(self.generators)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.random_state)
            result = sampler.step(model_output, self.timestep, sample, **options)
        return _following(result)


@contextmanager
def recorded_steps(scheduler: Any, keep: Callable[[SchedulerStep], None]) -> Iterator[None]:
    """Record the steps that a scheduler takes inside.

    Args:
        scheduler: The scheduler; it must not be tied.
        keep: Takes each step after it was taken.

    Raises:
        OptionError: If the scheduler is tied already.
    """
    hook = SchedulerHook.attached(scheduler, Clock())
    before: list[dict[str, Any]] = []

    def stepping(arguments: Mapping[str, Any]) -> None:
        given = dict(arguments)
        generators = given.pop("generator", None)
        before[:] = [
            {
                "scheduler": untied_copy(scheduler),
                "model_output": given.pop("model_output").clone(),
                "sample": given.pop("sample").clone(),
                "timestep": given.pop("timestep"),
                "generators": None if generators is None else _copied(generators),
                "random_state": torch.get_rng_state(),
                "options": given,
            }
        ]

    hook.stepping = stepping
    hook.stepped = lambda result: keep(SchedulerStep(**before[0], following=_following(result).clone()))
    try:
        yield
    finally:
        hook.detach()


def _copied(generators: Any) -> Any:
    if isinstance(generators, list | tuple):
        return [_copied(each) for each in generators]
    copied = torch.Generator(generators.device)
    copied.set_state(generators.get_state())
    return copied


def _following(result: Any) -> torch.Tensor:
    following: torch.Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return following
