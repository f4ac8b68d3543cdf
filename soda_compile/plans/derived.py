"""The sensitivity of one schedule derived from that of another.

A sensitivity is a property of the model along the noise level: what it costs to use at one level a value that was kept
at another. A schedule visits some of these pairs; those of another schedule are read between them.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from soda_compile.errors import SensitivityError
from soda_compile.plans.derivation_loss import DerivationLoss, loss_of
from soda_compile.plans.noise_schedule import SAME, Floats, NoiseSchedule, positions
from soda_compile.plans.resample import resample
from soda_compile.plans.sensitivity import Sensitivity


@dataclass(frozen=True, eq=False)
class Derived:
    """A sensitivity for another schedule.

    Attributes:
        sensitivity: its steps, timesteps and scheduler are the schedule's, ``info.derived_from`` says what was
            measured.
        loss: what it may be off by.
    """

    sensitivity: Sensitivity
    loss: DerivationLoss


def derive(sensitivity: Sensitivity, wanted: NoiseSchedule) -> Derived:
    """Read the tables of a schedule from those measured on another.

    Entries whose levels were visited are taken over; others are interpolated (see ``resample.read_between``); those
    further apart than ``max_interval`` measured steps are NaN. At most that many new steps apart are read. What
    intervals were simulated to cost holds for the scheduler that took their steps, and is left out.

    Raises:
        SensitivityError: the noise levels of the measurement are not known, or the schedules are too far apart.
    """
    measured = schedule_of(sensitivity)
    where = positions(measured, wanted)
    if len(where) == sensitivity.info.steps and bool((where == np.arange(len(where))).all()):
        return _same(sensitivity, wanted)
    width = _width(where, sensitivity)
    loss = loss_of(sensitivity, where, width)
    info = replace(
        sensitivity.info,
        steps=len(where),
        max_interval=width,
        notes={**sensitivity.info.notes, "derivation": str(loss)},
        **_identity(sensitivity, wanted),
    )
    mean = resample(sensitivity.mean, where, width)
    variance = resample(sensitivity.variance, where, width, variance=True)
    weights = wanted.step_weights if wanted.step_weights is not None else _shared_out(sensitivity.step_weights, where)
    made = replace(sensitivity, info=info, mean=mean, variance=variance, step_weights=weights, intervals=None)
    return Derived(made, loss)


def schedule_of(sensitivity: Sensitivity) -> NoiseSchedule:
    """Return the schedule of a measurement.

    Raises:
        SensitivityError: its noise levels are not known, or do not fall; or it covers a part of a schedule.
    """
    info = sensitivity.info
    if info.noise_levels is None or info.timesteps is None:
        raise SensitivityError(
            f"the noise levels of the {info.steps} measured steps are not known"
            + (f" ({info.notes['noise_levels']})" if "noise_levels" in info.notes else "")
            + "; calibrate with a diffusers scheduler, as scheduler=..., to plan for other steps"
        )
    if "first_step" in info.notes:
        raise SensitivityError(
            f"the denoiser was measured over {info.steps} steps from step {info.notes['first_step']} of "
            f"{info.notes.get('schedule_steps')}, and where its part begins in another schedule is not known; "
            "calibrate with that schedule"
        )
    return NoiseSchedule(
        info.noise_levels, info.timesteps, info.scheduler, info.scheduler_config, info.scheduler_digest
    )


def _same(sensitivity: Sensitivity, wanted: NoiseSchedule) -> Derived:
    """Return what was measured at these very levels; another scheduler may run them."""
    steps = sensitivity.info.steps
    loss, made = DerivationLoss(steps, steps, 1.0, 0.0, 0, 1.0, 0.0, 0.0), sensitivity
    if wanted.scheduler_digest != sensitivity.info.scheduler_digest or wanted.timesteps != sensitivity.info.timesteps:
        info = replace(sensitivity.info, **_identity(sensitivity, wanted))
        weights = sensitivity.step_weights if wanted.step_weights is None else wanted.step_weights
        made = replace(sensitivity, info=info, step_weights=weights, intervals=None)
    return Derived(made, loss)


def _identity(sensitivity: Sensitivity, wanted: NoiseSchedule) -> dict[str, Any]:
    """Return the fields of ``SensitivityInfo`` that say which schedule it is, and where it comes from."""
    names = ("timesteps", "noise_levels", "scheduler", "scheduler_config", "scheduler_digest")
    info = sensitivity.info
    origin = info.derived_from or f"{info.steps} steps of {info.scheduler}"
    return {**{name: getattr(wanted, name) for name in names}, "derived_from": origin}


def _width(where: Floats, sensitivity: Sensitivity) -> int:
    """Return the largest age in new steps that lies within the measured one anywhere."""
    info = sensitivity.info
    ages = range(1, min(info.max_interval, len(where) - 1) + 1)
    reached = [age for age in ages if float((where[age:] - where[:-age]).min()) <= info.max_interval + SAME]
    if reached:
        return reached[-1]
    if len(where) == 1:
        return 1
    shortest = float(np.diff(where).min())
    raise SensitivityError(
        f"values that are one of {len(where)} steps old are at least {shortest:.1f} of the {info.steps} measured steps "
        f"old, and those were measured up to max_interval={info.max_interval}; calibrate with max_interval of at least "
        f"{math.ceil(shortest)}, or take more steps"
    )


def _shared_out(weights: Floats, where: Floats) -> Floats:
    """Return measured step weights shared out among other steps by their lengths; the sum over a stretch stays.

    A step moves the sample by its length, so two half as long weigh half as much each.
    """
    edges = np.append(where, float(len(weights)))  # the last step goes to the end
    total = np.interp(edges, np.arange(len(weights) + 1), np.concatenate([[0.0], np.cumsum(weights)]))
    return np.diff(total)
