"""The noise levels of a schedule, and where they lie among those of another."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soda_compile.errors import SensitivityError

Floats = NDArray[np.float64]

SAME = 0.03
"""Share of a measured step within which two levels are the same: schedulers round timesteps to whole numbers."""
BEYOND = 1.5
"""Measured steps by which a schedule may begin before, or end after, what was measured."""
FINEST = 0.25
"""Measured steps that a step must have at least, in the median."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The steps that a scheduler runs.

    Attributes:
        noise_levels: the share of noise at each step, as in ``SensitivityInfo``; strictly falling.
        timesteps: one per step, as the scheduler gives them.
        scheduler: class name of the noise scheduler.
        scheduler_config: its configuration, JSON-able.
        scheduler_digest: short hash of that configuration.
        step_weights: [steps] float64, how far an output error at a step moves the sample; None to take the measured
            weights, shared out by the length of the steps.

    Raises:
        SensitivityError: the levels do not fall, or there is not one per step.
    """

    noise_levels: tuple[float, ...]
    timesteps: tuple[float, ...]
    scheduler: str | None = None
    scheduler_config: dict[str, Any] | None = None
    scheduler_digest: str | None = None
    step_weights: Floats | None = None

    def __post_init__(self) -> None:
        if not len(self.timesteps) == len(self.noise_levels) > 0:
            raise SensitivityError(
                f"{len(self.noise_levels)} noise levels and {len(self.timesteps)} timesteps; give one of each per step"
            )
        require_falling(self.noise_levels, f"the schedule of {self.scheduler or 'an unknown scheduler'}")


def require_falling(levels: tuple[float, ...], whose: str) -> None:
    """Check that each step has less noise than the one before.

    Raises:
        SensitivityError: it has not, as with Heun solvers, which call the model twice at one level.
    """
    wrong = np.flatnonzero(~(np.diff(levels) < 0))
    if wrong.size:
        step = int(wrong[0])
        raise SensitivityError(
            f"{whose} has noise level {levels[step]:.4g} at step {step} and {levels[step + 1]:.4g} at the next; plans "
            "are derived for levels that fall at every step (Heun solvers repeat them): calibrate with this schedule"
        )


def positions(measured: NoiseSchedule, wanted: NoiseSchedule) -> Floats:
    """Return where the levels of a schedule lie among the measured steps, [steps] float64: 2.5 is half way from 2 to 3.

    Levels that differ by less than ``SAME`` of a measured step are the same.

    Raises:
        SensitivityError: the schedules are too far apart, or noise in different ways.
    """
    known, levels = np.array(measured.noise_levels), np.array(wanted.noise_levels)
    last = len(known) - 1
    if last < 1:
        raise SensitivityError("one step was measured, between whose levels nothing can be read; calibrate with more")
    left = np.clip(np.searchsorted(-known, -levels, side="right") - 1, 0, last - 1)  # the ends go on as they are there
    found = left + (known[left] - levels) / (known[left] - known[left + 1])
    _require_reached(found, measured, wanted)
    _require_same_noising(found, measured, wanted)
    whole = np.round(found)
    return np.asarray(np.where(np.abs(found - whole) < SAME, whole, found), dtype=np.float64)


def _require_reached(found: Floats, measured: NoiseSchedule, wanted: NoiseSchedule) -> None:
    last = len(measured.timesteps) - 1
    outside = np.maximum(-found, found - last)
    step = int(outside.argmax())
    if outside[step] > BEYOND + SAME:
        raise SensitivityError(
            f"{wanted.scheduler} has noise level {wanted.noise_levels[step]:.4g} (timestep {wanted.timesteps[step]:g}) "
            f"at step {step}, {outside[step]:.1f} measured steps beyond what {measured.scheduler} measured, "
            f"{measured.noise_levels[0]:.4g} to {measured.noise_levels[-1]:.4g} (timesteps {measured.timesteps[0]:g} "
            f"to {measured.timesteps[-1]:g}); calibrate with a schedule that reaches it"
        )
    if len(found) > 1 and (length := float(np.median(np.diff(found)))) < FINEST:
        raise SensitivityError(
            f"a step of {wanted.scheduler} at {len(found)} steps is {length:.2f} of the {last + 1} that were measured; "
            f"what lies between them is not known that finely (at least {FINEST:g}): calibrate with at least "
            f"{int(np.ceil(len(found) * FINEST))} steps"
        )


def _require_same_noising(found: Floats, measured: NoiseSchedule, wanted: NoiseSchedule) -> None:
    """Check that a level has about the same timestep in both: the model reads the timestep, not the level."""
    steps, inside = np.arange(len(measured.timesteps)), (found >= 0) & (found <= len(measured.timesteps) - 1)
    known, timesteps = np.array(measured.timesteps), np.array(wanted.timesteps)
    expected = np.interp(found, steps, known)
    gaps = np.abs(np.diff(known))
    allowed = 0.02 * (known.max() - known.min()) + 0.25 * gaps[np.clip(found.astype(int), 0, len(gaps) - 1)]
    apart = np.where(inside, np.abs(timesteps - expected) - allowed, -np.inf)
    step = int(apart.argmax())
    if apart[step] > 0:
        raise SensitivityError(
            f"{wanted.scheduler} has noise level {wanted.noise_levels[step]:.4g} at timestep {timesteps[step]:g}, "
            f"where {measured.scheduler} had it near timestep {expected[step]:.4g}: they noise in different ways "
            "(betas?); calibrate with this scheduler"
        )
