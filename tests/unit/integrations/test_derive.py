"""Noise levels of diffusers' schedulers, and what is derived for them."""

import copy
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from level_tables import level_sensitivity

from soda_compile.errors import PlanError, SensitivityError
from soda_compile.integrations.diffusers.derive import derive_for, scheduler_at, with_noise_levels
from soda_compile.integrations.diffusers.noise_levels import noise_levels
from soda_compile.integrations.diffusers.schedule_fit import first_step, require_scheduler
from soda_compile.integrations.diffusers.scheduler_hook import (
    SchedulerHook,
    scheduler_config,
    scheduler_digest,
    timesteps_of,
)
from soda_compile.integrations.diffusers.step_weights import probe_step_weights
from soda_compile.planner import plan
from soda_compile.plans.sensitivity import Sensitivity
from soda_compile.runtime.clock import Clock

STEPS = 24


def prepared(name: str, steps: int = STEPS, **options: Any) -> Any:
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(steps)
    return scheduler


def measured_with(scheduler: Any, steps: int = STEPS, **info: Any) -> Sensitivity:
    """What is measured of the functions of `level_tables` under a scheduler."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    known = {
        "timesteps": tuple(timesteps_of(scheduler)),
        "scheduler": type(scheduler).__name__,
        "scheduler_config": scheduler_config(scheduler),
        "scheduler_digest": scheduler_digest(scheduler),
    }
    return level_sensitivity(noise_levels(scheduler), **known | info)


DDIM = prepared("DDIMScheduler", timestep_spacing="trailing")
EULER = prepared("EulerDiscreteScheduler", beta_schedule="linear", timestep_spacing="trailing")
FLOW = prepared("FlowMatchEulerDiscreteScheduler", shift=3.0)
OF_DDIM, OF_FLOW = measured_with(DDIM), measured_with(FLOW)


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "LCMScheduler"]
)
def test_levels_follow_the_signal_to_noise_ratio_whatever_the_sampler(name: str) -> None:
    scheduler = prepared(name, 8)
    alphas = scheduler.alphas_cumprod.double().numpy()
    log_snr = np.interp(timesteps_of(scheduler), np.arange(1000), np.log(alphas / (1 - alphas)))
    np.testing.assert_allclose(noise_levels(scheduler), 1 / (1 + np.exp(log_snr / 2)), rtol=2e-3)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_of_flow_matching_are_its_sigmas(shift: float) -> None:
    scheduler = prepared("FlowMatchEulerDiscreteScheduler", shift=shift)
    np.testing.assert_allclose(noise_levels(scheduler), scheduler.sigmas[:-1].numpy(), rtol=1e-5)
    unipc = prepared("UniPCMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True)
    np.testing.assert_allclose(noise_levels(unipc), unipc.sigmas[:-1].numpy(), rtol=1e-5)


def test_a_scheduler_that_has_begun_tells_the_same() -> None:
    for scheduler in (prepared("EulerDiscreteScheduler", 6), prepared("FlowMatchEulerDiscreteScheduler", 6)):
        fresh, weights = noise_levels(scheduler), probe_step_weights(scheduler)
        scheduler.set_begin_index(0)
        sample = torch.zeros(1, 1, 2, 2)
        for timestep in scheduler.timesteps[:3]:
            sample = scheduler.step(sample, timestep, sample, return_dict=False)[0]
        assert noise_levels(scheduler) == fresh
        np.testing.assert_array_equal(probe_step_weights(scheduler), weights)
        assert scheduler.step_index == 3


def test_custom_sigmas_are_followed() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.7, 0.2])
    assert noise_levels(scheduler, (), {"sigmas": [1.0, 0.7, 0.2]}) == pytest.approx([1.0, 0.7, 0.2], rel=1e-5)
    with pytest.raises(SensitivityError, match=r"probed for its noise levels.*other timesteps than the ones in use"):
        noise_levels(scheduler)


@pytest.mark.parametrize("steps", [8, 12, 17, 24, 40])
@pytest.mark.parametrize("scheduler", [DDIM, EULER, FLOW], ids=["DDIM", "Euler", "flow matching"])
def test_a_plan_of_what_is_derived_fits_the_scheduler(scheduler: Any, steps: int) -> None:
    wanted = copy.deepcopy(scheduler)
    wanted.set_timesteps(steps)
    derived = derive_for(OF_FLOW if scheduler is FLOW else OF_DDIM, wanted, (steps,)).sensitivity
    made = plan(derived, anchors=(2 * steps + 2) // 3)
    require_scheduler(made, wanted)
    assert first_step(made, wanted) == 0
    assert (made.steps, made.scheduler) == (steps, type(scheduler).__name__)
    if derived.info.derived_from:
        np.testing.assert_allclose(derived.step_weights, probe_step_weights(wanted))
    there = level_sensitivity(noise_levels(wanted), derived.info.max_interval)
    found = derived.table("residual", "reuse") / there.table("residual", "reuse")
    assert np.nanmedian(np.abs(found - 1)) < 0.03
    with pytest.raises(PlanError, match="the plan is for"):
        first_step(made, prepared("DDIMScheduler", steps + 1))


def test_a_tied_scheduler_under_way_is_read_and_left_alone() -> None:
    scheduler, clock = copy.deepcopy(DDIM), Clock()
    hook = SchedulerHook.attached(scheduler, clock)
    scheduler.set_timesteps(12)
    trajectories = clock.trajectory
    derived = derive_for(OF_DDIM, scheduler, *hook.arguments).sensitivity
    assert clock.trajectory == trajectories
    assert derived.info.scheduler == "DDIMScheduler"
    assert derived.info.scheduler_digest == OF_DDIM.info.scheduler_digest
    assert hook.noise_levels() == derived.info.noise_levels
    hook.detach()


def test_a_shifted_schedule_is_taken_as_it_is_set() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(16, mu=0.9)
    derived = derive_for(OF_FLOW, scheduler, (16,), {"mu": 0.9})
    assert derived.sensitivity.info.timesteps == tuple(timesteps_of(scheduler))
    with pytest.raises(SensitivityError, match=r"set_timesteps\(16\) failed: .*pass the scheduler without steps"):
        scheduler_at(OF_FLOW, scheduler, 16)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (prepared("DDIMScheduler", prediction_type="v_prediction"), "as epsilon, DDIMScheduler as v_prediction"),
        (FLOW, "as epsilon, FlowMatchEulerDiscreteScheduler as flow_prediction"),
        (prepared("DDIMScheduler", beta_schedule="scaled_linear"), "noise in different ways"),
        (prepared("DDIMScheduler", 3), "calibrate with max_interval of at least"),
        (prepared("DDIMScheduler", 200), "calibrate with at least 50 steps"),
    ],
)
def test_what_cannot_be_derived_is_refused(scheduler: Any, message: str) -> None:
    with pytest.raises(SensitivityError, match=message):
        derive_for(OF_DDIM, scheduler)


def test_solvers_that_repeat_levels_are_refused() -> None:
    scheduler = prepared("HeunDiscreteScheduler", 12, beta_schedule="linear", beta_start=0.0001, beta_end=0.02)
    with pytest.raises(SensitivityError, match=r"of HeunDiscreteScheduler has noise level .* at the next"):
        derive_for(OF_DDIM, scheduler, (12,))
    with pytest.raises(SensitivityError, match="FlowMatchHeunDiscreteScheduler does not tell its noise levels"):
        derive_for(OF_FLOW, prepared("FlowMatchHeunDiscreteScheduler", 12), (12,))


def test_files_without_levels_take_those_of_their_scheduler() -> None:
    for known, scheduler in ((OF_DDIM, DDIM), (OF_FLOW, FLOW)):
        old = replace(known, info=replace(known.info, noise_levels=None))
        assert with_noise_levels(old).info == known.info
        wanted = copy.deepcopy(scheduler)
        wanted.set_timesteps(12)
        assert derive_for(old, wanted).sensitivity.info == derive_for(known, wanted).sensitivity.info
    other = replace(OF_DDIM.info, noise_levels=None, timesteps=tuple(np.linspace(990, 400, STEPS)))
    with pytest.raises(SensitivityError, match=r"of an older version, without noise levels, and DDIMScheduler\.set_"):
        with_noise_levels(replace(OF_DDIM, info=other))


@pytest.mark.parametrize("change", [{"scheduler": "Solver"}, {"scheduler_config": None}])
def test_schedulers_that_cannot_be_made_again_are_asked_for(change: dict[str, Any]) -> None:
    unknown = replace(OF_DDIM, info=replace(OF_DDIM.info, **change))
    with pytest.raises(SensitivityError, match="which diffusers cannot make; pass scheduler="):
        scheduler_at(unknown, None, 12)


def test_a_schedule_on_another_device_is_probed_on_the_cpu() -> None:
    """The arguments are those of the pipeline, which are not asked whether that device is here."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(6)
    wanted = probe_step_weights(scheduler, (6,))
    np.testing.assert_array_equal(probe_step_weights(scheduler, (6, "cuda")), wanted)
    np.testing.assert_array_equal(probe_step_weights(scheduler, (6,), {"device": torch.device("cuda")}), wanted)
