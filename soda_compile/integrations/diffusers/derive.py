"""A sensitivity for the schedule of a diffusers scheduler, derived from what was measured on another."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from soda_compile.errors import SensitivityError
from soda_compile.integrations.diffusers.noise_levels import noise_levels
from soda_compile.integrations.diffusers.scheduler_copies import untied_copy
from soda_compile.integrations.diffusers.scheduler_hook import scheduler_config, scheduler_digest, timesteps_of
from soda_compile.integrations.diffusers.scheduler_ties import untied_class
from soda_compile.integrations.diffusers.step_weights import probe_step_weights
from soda_compile.plans.derived import Derived, derive
from soda_compile.plans.noise_schedule import NoiseSchedule
from soda_compile.plans.sensitivity import Sensitivity, SensitivityInfo


def derive_for(
    sensitivity: Sensitivity, scheduler: Any, arguments: Sequence[Any] = (), options: Mapping[str, Any] | None = None
) -> Derived:
    """Derive the sensitivity of the schedule that is set, which may have other steps or be another scheduler's.

    Args:
        sensitivity: What was measured, with a scheduler of diffusers.
        scheduler: A diffusers scheduler whose timesteps are set.
        arguments: Positional arguments of the ``set_timesteps`` call that set them; by default their number.
        options: Keyword arguments of it.

    Raises:
        SensitivityError: If the schedules are too far apart, the model's output means another thing to this
            scheduler, or the noise levels of either are not known.
    """
    _require_same_output(sensitivity.info, scheduler)
    wanted = NoiseSchedule(
        noise_levels(scheduler, arguments, options),
        tuple(timesteps_of(scheduler)),
        untied_class(scheduler).__name__,
        scheduler_config(scheduler),
        scheduler_digest(scheduler),
        probe_step_weights(scheduler, arguments, options),
    )
    return derive(with_noise_levels(sensitivity), wanted)


def scheduler_at(sensitivity: Sensitivity, scheduler: Any, steps: int | None) -> Any:
    """Return a copy of a scheduler, or of the measured one, with its timesteps set.

    Args:
        sensitivity: What was measured.
        scheduler: A diffusers scheduler; None for the one of the measurement.
        steps: How many steps it shall run; None for the timesteps that it has.

    Raises:
        SensitivityError: If there is no scheduler, or its timesteps cannot be set.
    """
    made = measured_scheduler(sensitivity.info) if scheduler is None else untied_copy(scheduler)
    if steps is None and scheduler is not None:
        return made
    count = sensitivity.info.steps if steps is None else steps
    try:
        made.set_timesteps(count)
    except Exception as error:
        raise SensitivityError(
            f"{type(made).__name__}.set_timesteps({count}) failed: {type(error).__name__}: {error}; set the timesteps "
            "as the pipeline does, and pass the scheduler without steps"
        ) from error
    return made


def with_noise_levels(sensitivity: Sensitivity) -> Sensitivity:
    """Return the same, with the noise levels that older files lack: those of the scheduler that they name.

    Raises:
        SensitivityError: If it cannot be made again with the same timesteps.
    """
    info = sensitivity.info
    if info.noise_levels is not None or info.timesteps is None or info.scheduler is None or "first_step" in info.notes:
        return sensitivity
    scheduler = scheduler_at(sensitivity, None, info.steps)
    timesteps = timesteps_of(scheduler)
    if len(timesteps) != info.steps or not np.allclose(timesteps, info.timesteps, rtol=1e-2, atol=1e-3):
        raise SensitivityError(
            f"the measurement is of an older version, without noise levels, and {info.scheduler}.set_timesteps"
            f"({info.steps}) gives other timesteps than it has ({timesteps[:3]}... and {list(info.timesteps[:3])}...); "
            "calibrate again"
        )
    return replace(sensitivity, info=replace(info, noise_levels=noise_levels(scheduler)))


def measured_scheduler(info: SensitivityInfo) -> Any:
    """Make the scheduler that was measured again.

    Raises:
        SensitivityError: If none is recorded, or diffusers does not know it.
    """
    import diffusers  # takes seconds, and a process that runs a package needs none of it

    kind = getattr(diffusers, info.scheduler or "", None)
    if kind is None or info.scheduler_config is None:
        raise SensitivityError(
            f"the measurement is of the scheduler {info.scheduler}, which diffusers cannot make; pass scheduler=..."
        )
    return kind.from_config(info.scheduler_config)


def _require_same_output(info: SensitivityInfo, scheduler: Any) -> None:
    measured = _output_of(info.scheduler, info.scheduler_config)
    wanted = _output_of(untied_class(scheduler).__name__, scheduler_config(scheduler))
    if measured != wanted:
        raise SensitivityError(
            f"the measured {info.scheduler} takes the model's output as {measured}, "
            f"{untied_class(scheduler).__name__} as {wanted}; a model has one, so set prediction_type={measured!r}"
        )


def _output_of(name: str | None, config: Mapping[str, Any] | None) -> str:
    """Return what a scheduler takes the model's output for; flow matching has no choice and does not say."""
    flow = "flow_prediction" if (name or "").startswith("FlowMatch") else "an unknown quantity"
    return str((config or {}).get("prediction_type", flow))
