"""Noise levels: what the steps of a schedule are to a model, whatever scheduler runs them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from soda_compile.errors import SensitivityError
from soda_compile.integrations.diffusers.scheduler_copies import fresh_copy


def noise_levels(
    scheduler: Any, arguments: Sequence[Any] = (), options: Mapping[str, Any] | None = None
) -> tuple[float, ...]:
    """Probe a diffusers noise scheduler for the share of noise sigma / (alpha + sigma) at each of its timesteps.

    Args:
        scheduler: A diffusers scheduler whose timesteps are set.
        arguments: Positional arguments of the ``set_timesteps`` call that set them; by default their number.
        options: Keyword arguments of it.

    Returns:
        One for each step, from 1, noise alone, down to 0, clean.

    Raises:
        SensitivityError: If the scheduler does not tell.
    """
    try:
        copied = fresh_copy(scheduler, arguments, options)  # one that has begun noises all alike
        parts = [noising(copied, timestep) for timestep in copied.timesteps]
        levels = tuple(sigma / (alpha + sigma) for alpha, sigma in parts)
    except Exception as error:
        raise SensitivityError(
            f"{type(scheduler).__name__} could not be probed for its noise levels: {type(error).__name__}: {error}"
        ) from error
    if not all(0 <= level <= 1 for level in levels) or len(set(levels)) < min(2, len(levels)):
        raise SensitivityError(f"{type(scheduler).__name__} does not tell its noise levels; probing it gave {levels}")
    return levels


def noising(scheduler: Any, timestep: torch.Tensor) -> tuple[float, float]:
    """Return alpha and sigma of the noised sample alpha * x0 + sigma * eps that a fresh scheduler makes."""
    one, zero, at = torch.ones(1, 1), torch.zeros(1, 1), timestep.reshape(1)
    if hasattr(scheduler, "scale_noise"):  # flow matching
        return float(scheduler.scale_noise(one, at, zero)), float(scheduler.scale_noise(zero, at, one))
    if hasattr(scheduler, "add_noise"):
        return float(scheduler.add_noise(one, zero, at)), float(scheduler.add_noise(zero, one, at))
    return 1.0, 0.0
