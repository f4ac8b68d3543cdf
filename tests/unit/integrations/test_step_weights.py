"""Step weights against closed forms and against errors put in by hand."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from soda_compile.errors import SensitivityError
from soda_compile.integrations.diffusers.step_weights import probe_step_weights

STEPS = 8


def prepared(name: str, **options: Any) -> Any:
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(STEPS)
    return scheduler


def by_hand(scheduler: Any, step: int, seed: int | None = None) -> float:
    """Norm of the sample's change right after an error of norm 1 at one step, around random outputs, in float64."""
    calls = len(scheduler.timesteps)
    generator = torch.Generator().manual_seed(7)
    outputs = torch.randn(calls, 1, 1, 8, 8, generator=generator, dtype=torch.float64)
    error = torch.randn(1, 1, 8, 8, generator=generator, dtype=torch.float64)
    results = []
    for factor in (0.0, 1e-3):
        own = type(scheduler).from_config(scheduler.config)
        own.set_timesteps(STEPS)
        sample = torch.ones(1, 1, 8, 8, dtype=torch.float64)
        extra = {} if seed is None else {"generator": torch.Generator().manual_seed(seed)}
        for index, timestep in enumerate(own.timesteps):
            own.scale_model_input(sample, timestep) if hasattr(own, "scale_model_input") else None
            output = outputs[index] + (factor * error if index == step else 0)
            sample = own.step(output, timestep, sample, return_dict=False, **extra)[0]
            if index == step:
                break
        results.append(sample)
    return float((results[1] - results[0]).norm() / (1e-3 * error.norm()))


def sizes(scheduler: Any) -> np.ndarray:
    """Sizes of unit samples with unit noise after each step: 1 where the noising preserves variance."""
    calls = len(scheduler.timesteps)
    sigmas = np.array(scheduler.sigmas.double())[1:] if hasattr(scheduler, "sigmas") else np.zeros(calls)
    if type(scheduler).__name__.startswith("FlowMatch"):
        return np.hypot(1 - sigmas, sigmas)
    if type(scheduler).__name__ in ("EulerDiscreteScheduler", "HeunDiscreteScheduler"):
        return np.hypot(1, sigmas)
    return np.ones(calls)


DETERMINISTIC = {
    "DDIM": prepared("DDIMScheduler", clip_sample=False),
    "DDIM with a shorter schedule": prepared("DDIMScheduler", clip_sample=False, beta_schedule="scaled_linear"),
    "DPM-Solver++": prepared("DPMSolverMultistepScheduler"),
    "DPM-Solver++ of order 3": prepared("DPMSolverMultistepScheduler", solver_order=3),
    "Euler": prepared("EulerDiscreteScheduler"),
    "flow match Euler": prepared("FlowMatchEulerDiscreteScheduler"),
    "UniPC": prepared("UniPCMultistepScheduler"),
    "Heun": prepared("HeunDiscreteScheduler"),
}


@pytest.mark.parametrize("scheduler", DETERMINISTIC.values(), ids=DETERMINISTIC)
def test_an_error_put_in_by_hand_moves_the_sample_as_much(scheduler: Any):
    weights = probe_step_weights(scheduler, (STEPS,))
    calls = len(scheduler.timesteps)
    assert weights.shape == (calls,)
    expected = np.array([by_hand(scheduler, step) for step in range(calls)]) / sizes(scheduler)
    np.testing.assert_allclose(weights, expected, rtol=2e-3, atol=1e-5)


def test_ddim_in_closed_form():
    """x' = sqrt(a'/a) x + (sqrt(1 - a') - sqrt(a' (1 - a) / a)) output, for samples of size 1."""
    scheduler = prepared("DDIMScheduler", clip_sample=False, set_alpha_to_one=True)
    alphas = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    following = torch.cat([alphas[1:], torch.ones(1, dtype=torch.float64)])
    at_once = (1 - following).sqrt() - (following * (1 - alphas) / alphas).sqrt()
    expected = at_once.abs().numpy()
    np.testing.assert_allclose(probe_step_weights(scheduler), expected, rtol=1e-3)


def test_flow_matching_weighs_a_step_by_its_length():
    scheduler = prepared("FlowMatchEulerDiscreteScheduler", shift=3.0)
    lengths = -np.diff(scheduler.sigmas.double().numpy())
    np.testing.assert_allclose(probe_step_weights(scheduler), lengths / sizes(scheduler), rtol=1e-4)


def test_the_noise_of_a_stochastic_scheduler_cancels():
    scheduler = prepared("DDPMScheduler", clip_sample=False)
    weights = probe_step_weights(scheduler)
    np.testing.assert_allclose(weights, [by_hand(scheduler, step, seed=1) for step in range(STEPS)], rtol=1e-2)


def test_the_scheduler_itself_is_left_alone():
    scheduler = prepared("EulerDiscreteScheduler")
    before = scheduler.step_index, scheduler.timesteps.clone()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    probe_step_weights(scheduler)
    assert torch.equal(torch.rand(2), expected), "the global random state was moved"
    assert scheduler.step_index == before[0]
    assert torch.equal(scheduler.timesteps, before[1])


def test_timesteps_that_cannot_be_repeated_are_an_error():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.7, 0.2])
    assert probe_step_weights(scheduler, (), {"sigmas": [1.0, 0.7, 0.2]}).shape == (3,)
    with pytest.raises(SensitivityError, match=r"gives other timesteps than the ones in use.*scheduler=None"):
        probe_step_weights(scheduler)
