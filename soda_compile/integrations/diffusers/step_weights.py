"""Step weights: how far an error in the denoiser's output at each step moves the sample."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from soda_compile.errors import SensitivityError
from soda_compile.integrations.diffusers.noise_levels import noising
from soda_compile.integrations.diffusers.scheduler_copies import fresh_copy


def probe_step_weights(
    scheduler: Any, arguments: Sequence[Any] = (), options: Mapping[str, Any] | None = None
) -> npt.NDArray[np.float64]:
    """Probe a diffusers noise scheduler; it is linear in the model output, so one small error a step tells all.

    Runs a copy of the scheduler twice over the whole trajectory on a batch with one row for each step, with zero
    model outputs: in the first run row t has an error at step t. Random noise is drawn alike in both runs. What
    counts is how far the sample has moved right after the step, against the size that samples have there. Following
    the error to the end without the denoiser would overrate the first steps by far: the denoiser corrects it.

    Args:
        scheduler: A diffusers scheduler whose timesteps are set.
        arguments: Positional arguments of the ``set_timesteps`` call that set them.
        options: Keyword arguments of it.

    Returns:
        float64 [steps]: norm of the change of the sample / norm of the error in the model output / size of a sample.

    Raises:
        SensitivityError: If the scheduler cannot be run again over the same timesteps.
    """
    steps = len(scheduler.timesteps)
    errors = torch.zeros(steps, steps, 1, 2, 2)
    errors[range(steps), range(steps)] = 1e-2
    try:
        disturbed, calm = (_run(scheduler, arguments, options or {}, outputs) for outputs in (errors, errors * 0))
        sizes = _sample_sizes(fresh_copy(scheduler, arguments, options))
    except Exception as error:
        raise SensitivityError(
            f"{type(scheduler).__name__} could not be probed for its step weights: {type(error).__name__}: {error}. "
            "Pass scheduler=None to weigh all steps alike"
        ) from error
    samples = torch.arange(steps)
    moved: npt.NDArray[np.float64] = (disturbed - calm)[samples, samples].flatten(1).norm(dim=1).double().numpy()
    return moved / float(errors[0, 0].norm()) / sizes


def _sample_sizes(scheduler: Any) -> npt.NDArray[np.float64]:
    """Return the size of a noised sample after each step, for clean samples and noise of unit size."""
    sizes = [math.hypot(*noising(scheduler, timestep)) for timestep in scheduler.timesteps[1:]]
    return np.array([*sizes, 1.0])  # after the last step the sample is clean


def _run(scheduler: Any, arguments: Sequence[Any], options: Mapping[str, Any], outputs: torch.Tensor) -> torch.Tensor:
    """Return the samples after each step, [steps, samples, 1, 2, 2], for given model outputs of that shape."""
    copied = fresh_copy(scheduler, arguments, options)
    takes_generator = "generator" in inspect.signature(copied.step).parameters
    extra = {"generator": torch.Generator().manual_seed(0)} if takes_generator else {}
    sample = torch.zeros_like(outputs[0])
    samples = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for timestep, output in zip(copied.timesteps, outputs, strict=True):
            if hasattr(copied, "scale_model_input"):
                copied.scale_model_input(sample, timestep)
            sample = copied.step(output, timestep, sample, return_dict=False, **extra)[0]
            samples.append(sample)
    return torch.stack(samples)
