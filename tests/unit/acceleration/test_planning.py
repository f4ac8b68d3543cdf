"""``soda_compile.plan`` for other steps and schedulers than those that were measured."""

import diffusers
import numpy as np
import pytest
from level_tables import level_sensitivity
from planner_tables import make_sensitivity

import soda_compile
from soda_compile.errors import SensitivityError
from soda_compile.integrations.diffusers.noise_levels import noise_levels
from soda_compile.integrations.diffusers.schedule_fit import first_step, require_scheduler
from soda_compile.integrations.diffusers.scheduler_hook import scheduler_config, scheduler_digest, timesteps_of
from soda_compile.plans.sensitivity import Sensitivity

SCHEDULER = diffusers.DDIMScheduler(timestep_spacing="trailing")


@pytest.fixture(scope="module")
def sensitivity() -> Sensitivity:
    SCHEDULER.set_timesteps(20)
    known = {"scheduler_config": scheduler_config(SCHEDULER), "scheduler_digest": scheduler_digest(SCHEDULER)}
    known |= {"timesteps": tuple(timesteps_of(SCHEDULER)), "scheduler": "DDIMScheduler"}
    return level_sensitivity(noise_levels(SCHEDULER), **known)


def test_the_measured_schedule_needs_no_diffusers() -> None:
    own = make_sensitivity(steps=8)
    assert soda_compile.plan(own, anchors=4) == soda_compile.plan(own, anchors=4, steps=8)
    assert "derived_from" not in dict(soda_compile.plan(own, anchors=4).method)


@pytest.mark.parametrize("steps", [8, 20, 33])
def test_other_steps_of_the_measured_scheduler(sensitivity: Sensitivity, steps: int) -> None:
    made = soda_compile.plan(sensitivity, speedup=1.5, steps=steps)
    wanted = diffusers.DDIMScheduler.from_config(SCHEDULER.config)
    wanted.set_timesteps(steps)
    require_scheduler(made, wanted)
    assert (made.steps, first_step(made, wanted)) == (steps, 0)
    assert made.flop_ratio <= 1 / 1.5
    assert dict(made.method).get("derived_from") == (None if steps == 20 else "20 steps of DDIMScheduler")


def test_another_scheduler(sensitivity: Sensitivity) -> None:
    wanted = diffusers.DPMSolverMultistepScheduler.from_config(SCHEDULER.config)
    made = soda_compile.plan(sensitivity, anchors=6, steps=12, scheduler=wanted)
    assert wanted.num_inference_steps is None, "the scheduler was set"
    wanted.set_timesteps(12)
    require_scheduler(made, wanted)
    assert first_step(made, wanted) == 0
    assert made == soda_compile.plan(sensitivity, anchors=6, scheduler=wanted)
    strategy = soda_compile.FixedInterval("reuse")
    assert soda_compile.plan(sensitivity, anchors=6, scheduler=wanted, strategy=strategy).anchors == (0, 2, 4, 6, 8, 10)


def test_what_cannot_be_derived_is_refused(sensitivity: Sensitivity) -> None:
    with pytest.raises(SensitivityError, match="calibrate with max_interval of at least"):
        soda_compile.plan(sensitivity, speedup=2.0, steps=2)
    with pytest.raises(SensitivityError, match="the measurement is of the scheduler None"):
        soda_compile.plan(make_sensitivity(steps=8, scheduler=None), speedup=2.0, steps=6)
    levels = {"noise_levels": tuple(np.linspace(1, 0.1, 8)), "scheduler_config": {"prediction_type": "v_prediction"}}
    with pytest.raises(SensitivityError, match="as v_prediction, DDIMScheduler as epsilon"):
        soda_compile.plan(make_sensitivity(steps=8, **levels), speedup=2.0, steps=6, scheduler=SCHEDULER)
