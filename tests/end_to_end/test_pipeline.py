"""A diffusers pipeline, calibrated, planned, accelerated and restored: the digits model over six steps.

Graphs run as they are, except where the thorough run compares a plan through Inductor with hooks on the original; the
gate has that in the demo, and for small models in test_families.py.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from diffusers import DPMSolverMultistepScheduler
from eager_reference import EagerReference
from families import Region
from thorough import gated

import soda_compile
from soda_compile.backend.options import LOWERING
from soda_compile.digits.pipeline import DigitsPipeline, load
from soda_compile.plans.plan import Plan
from soda_compile.plans.sensitivity import Sensitivity

STEPS, LABELS = 6, (3, 7)
# Six sampler steps pass float32 rounding on; a plan that is not carried out shows at 1e-2.
ROUNDING = {"rtol": 1e-3, "atol": 1e-4}
LAYERS = range(6)
REGIONS = {
    name: Region((f"{name}.{last}",))
    for layer in LAYERS
    for name, last in (
        (f"transformer_blocks.{layer}.attn1", "to_out.0"),
        (f"transformer_blocks.{layer}.ff", "net.2"),
    )
}


def draw(pipe: DigitsPipeline, seed: int = 0, labels: tuple[int, ...] = LABELS, **options: Any) -> Tensor:
    """Samples of one generation, as the sampler leaves them."""
    generator = torch.Generator().manual_seed(seed)
    options = {"num_inference_steps": STEPS, **options}
    images: Tensor = pipe(list(labels), generator=generator, output_type="latent", **options).images
    return images


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


pytestmark = pytest.mark.usefixtures("eager_throughout")


@contextmanager
def compiled_by_inductor() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(LOWERING)
        yield


def measure(generations: int = 1, resume: Sensitivity | None = None) -> Sensitivity:
    pipe = load()
    return soda_compile.calibrate(
        pipe, lambda seed: draw(pipe, seed), generations=generations, max_interval=2, guidance=1.5, resume=resume
    )


@pytest.fixture
def pipe() -> DigitsPipeline:
    return load()


@pytest.fixture(scope="module")
def sensitivity() -> Sensitivity:
    return measure()


@pytest.fixture(scope="module")
def plan(sensitivity: Sensitivity) -> Plan:
    return soda_compile.plan(sensitivity, anchors=3)


@pytest.fixture(scope="module")
def original() -> Tensor:
    return draw(load())


@pytest.fixture(scope="module")
def accelerated(plan: Plan) -> DigitsPipeline:
    pipe = load()
    assert soda_compile.accelerate(pipe, plan) is pipe
    return pipe


@pytest.fixture(scope="module")
def clean(accelerated: DigitsPipeline) -> Tensor:
    """The first generation after acceleration."""
    return draw(accelerated)


@contextmanager
def replaced_forward(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


# Acceleration


def test_computing_everything_is_the_original(pipe: DigitsPipeline, original: Tensor) -> None:
    soda_compile.accelerate(pipe, soda_compile.compute_all_plan(tuple(REGIONS), STEPS))
    torch.testing.assert_close(draw(pipe), original, **ROUNDING)


@pytest.mark.parametrize("lowering", gated(nullcontext, others=[compiled_by_inductor]))
def test_a_cached_plan_does_what_hooks_do(
    lowering: Callable[[], AbstractContextManager[None]], pipe: DigitsPipeline, plan: Plan, original: Tensor
) -> None:
    with lowering():
        fast = draw(soda_compile.accelerate(load(), plan))
    reference = EagerReference(pipe.transformer, REGIONS, plan)
    steps = iter(range(STEPS))
    forward = pipe.transformer.forward

    def planned(*arguments: Any, **options: Any) -> Any:
        with reference.step(next(steps)):
            return forward(*arguments, **options)

    with replaced_forward(pipe.transformer, planned):
        torch.testing.assert_close(fast, draw(pipe), **ROUNDING)
    assert next(steps, None) is None
    assert (fast - original).abs().max() > 1e-2


@pytest.mark.thorough
def test_a_generation_does_not_depend_on_those_before(accelerated: DigitsPipeline, clean: Tensor) -> None:
    other = draw(accelerated, seed=1)
    draw(accelerated, labels=(1, 2, 3))  # another batch size
    same(draw(accelerated), clean)
    same(draw(accelerated, seed=1), other)
    assert (other - clean).abs().max() > 0.1


@pytest.mark.parametrize("last", [0, 2, STEPS - 1])
def test_an_interrupted_generation_leaves_nothing(accelerated: DigitsPipeline, clean: Tensor, last: int) -> None:
    reached = []

    def interrupt(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        reached.append(step)
        if step == last:
            raise KeyboardInterrupt
        return values

    with suppress(KeyboardInterrupt):
        draw(accelerated, seed=1, callback_on_step_end=interrupt)
    assert reached == list(range(last + 1))
    same(draw(accelerated), clean)


def test_another_number_of_steps_runs_plain_and_says_so(
    accelerated: DigitsPipeline, clean: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    found = draw(accelerated, num_inference_steps=8)
    torch.testing.assert_close(found, draw(load(), num_inference_steps=8), **ROUNDING)
    counted = soda_compile.stats(accelerated)["transformer"]
    assert counted["misses"]["outside"] == 8
    assert f"the plan is for {STEPS} steps, the pipeline runs 8" in counted["reasons"]["outside"]
    same(draw(accelerated), clean)


def test_another_number_of_steps_can_be_refused_before_the_denoiser_runs(pipe: DigitsPipeline, plan: Plan) -> None:
    soda_compile.accelerate(pipe, plan, on_miss="error")
    ran = []
    pipe.transformer.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(soda_compile.PlanError, match=f"the plan is for {STEPS} steps, the pipeline runs 8"):
        draw(pipe, num_inference_steps=8)
    assert not ran


def test_other_timesteps_are_refused_with_both_values(pipe: DigitsPipeline, plan: Plan) -> None:
    assert plan.timesteps is not None
    shifted = replace(plan, timesteps=(*plan.timesteps[:-1], plan.timesteps[-1] + 7))
    soda_compile.accelerate(pipe, shifted, on_miss="error")
    with pytest.raises(soda_compile.PlanError, match=f"at step {STEPS - 1}, the scheduler {plan.timesteps[-1]:g}"):
        draw(pipe)


def test_another_scheduler_is_refused_and_changes_nothing(pipe: DigitsPipeline, plan: Plan) -> None:
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(soda_compile.PlanError, match=r"made for DDIMScheduler .* has DPMSolverMultistepScheduler"):
        soda_compile.accelerate(pipe, plan)
    assert "forward" not in vars(pipe.transformer)
    assert "step" not in vars(pipe.scheduler)


def test_a_plan_of_another_model_is_refused(pipe: DigitsPipeline) -> None:
    soda_compile.accelerate(pipe, soda_compile.compute_all_plan(("transformer_blocks.9.attn1",), STEPS))
    with pytest.raises(Exception, match=r"not in this graph: transformer_blocks\.9\.attn1"):
        draw(pipe)


@pytest.mark.thorough
def test_restoring_gives_back_the_original(pipe: DigitsPipeline, plan: Plan, original: Tensor, tmp_path: Path) -> None:
    draw(pipe)  # lets pipeline and scheduler set what they set at the first use
    parts = (pipe, pipe.transformer, pipe.scheduler)
    before = [set(vars(part)) for part in parts]
    plan.save(tmp_path / "plan.json")
    soda_compile.accelerate(pipe, str(tmp_path / "plan.json"))
    assert (draw(pipe) - original).abs().max() > 1e-2
    assert soda_compile.restore(pipe) is pipe
    assert [set(vars(part)) for part in parts] == before
    same(draw(pipe), original)
    with pytest.raises(soda_compile.OptionError, match="not accelerated"):
        soda_compile.restore(pipe)


def test_accelerating_twice_is_refused_and_keeps_the_first(
    accelerated: DigitsPipeline, plan: Plan, clean: Tensor
) -> None:
    with pytest.raises(soda_compile.OptionError, match=r"accelerated already; call soda_compile\.restore"):
        soda_compile.accelerate(accelerated, plan)
    same(draw(accelerated), clean)


def test_an_accelerated_pipeline_is_not_calibrated(accelerated: DigitsPipeline) -> None:
    with pytest.raises(soda_compile.OptionError, match=r"tied already.*restore\(pipe\) first"):
        soda_compile.calibrate(accelerated, lambda seed: draw(accelerated, seed), generations=1)


# Calibration


def test_what_was_measured_is_noted(sensitivity: Sensitivity) -> None:
    info = sensitivity.info
    assert info.regions == tuple(REGIONS)
    assert (info.steps, info.max_interval, info.generations, info.seeds) == (STEPS, 2, 1, (0,))
    assert info.samples == 2 * len(LABELS)  # guidance doubles the batch
    assert (info.scheduler, info.guidance, info.calls_per_step) == ("DDIMScheduler", 1.5, 1)
    assert info.timestep_input == "timestep"
    pipe = load()
    pipe.scheduler.set_timesteps(STEPS)
    assert info.timesteps == tuple(map(float, pipe.scheduler.timesteps))


def test_reuse_errors_are_those_of_the_eager_model(pipe: DigitsPipeline, sensitivity: Sensitivity) -> None:
    name = "transformer_blocks.2.ff"
    cuts: list[Tensor] = []
    handle = pipe.transformer.get_submodule(f"{name}.net.2").register_forward_hook(lambda *a: cuts.append(a[2]))
    draw(pipe)
    handle.remove()
    for step, age in ((1, 1), (3, 1), (3, 2), (STEPS - 1, 2)):
        now, past = cuts[step].flatten(1), cuts[step - age].flatten(1)
        relative = ((now - past).norm(dim=1) / now.norm(dim=1)).mean().item()
        assert sensitivity.error("relative", "reuse", step, name, age) == pytest.approx(relative, rel=1e-3)


def test_saving_and_loading_loses_nothing(sensitivity: Sensitivity, plan: Plan, tmp_path: Path) -> None:
    sensitivity.save(tmp_path / "sensitivity.safetensors")
    loaded = Sensitivity.load(tmp_path / "sensitivity.safetensors")
    assert loaded.info == sensitivity.info
    for name, table in sensitivity.arrays().items():
        np.testing.assert_array_equal(loaded.arrays()[name], table)
    assert soda_compile.plan(loaded, anchors=3) == plan


@pytest.mark.thorough
def test_resuming_is_measuring_in_one_go(sensitivity: Sensitivity) -> None:
    resumed, at_once = measure(resume=sensitivity), measure(generations=2)
    assert resumed.info.seeds == at_once.info.seeds == (0, 1)
    assert resumed.info.samples == at_once.info.samples == 2 * sensitivity.info.samples
    for name, table in at_once.arrays().items():
        np.testing.assert_allclose(resumed.arrays()[name], table, rtol=1e-4, atol=1e-7, err_msg=name)
    key = "relative.reuse"
    assert np.nanmax(np.abs(resumed.mean[key] - sensitivity.mean[key])) > 1e-4


@pytest.mark.thorough
def test_calibration_leaves_the_pipeline_as_it_was(pipe: DigitsPipeline, original: Tensor) -> None:
    def fail(seed: int) -> None:
        draw(pipe, seed)
        raise KeyboardInterrupt

    draw(pipe)
    parts = (pipe, pipe.transformer, pipe.scheduler)
    before = [set(vars(part)) for part in parts]
    with suppress(KeyboardInterrupt):
        soda_compile.calibrate(pipe, fail, generations=1, max_interval=2)
    assert [set(vars(part)) for part in parts] == before
    same(draw(pipe), original)


def test_a_generation_must_call_the_model_and_keep_its_steps(pipe: DigitsPipeline) -> None:
    with pytest.raises(soda_compile.SensitivityError, match="did not call the model"):
        soda_compile.calibrate(pipe, lambda seed: None, generations=1)
    with pytest.raises(soda_compile.SensitivityError, match=r"same number of steps; they had \[4, 5\]"):
        soda_compile.calibrate(pipe, lambda seed: draw(pipe, seed, num_inference_steps=4 + seed), generations=2)


@pytest.mark.thorough
def test_a_second_call_for_guidance_is_noticed(pipe: DigitsPipeline) -> None:
    """A loop without a diffusers scheduler, one call for the label and one without."""
    timesteps = (900, 700, 500, 300)

    def loop(seed: int) -> None:
        latents = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        for timestep in timesteps:
            noise = [
                pipe.transformer(latents, timestep=torch.full((2,), timestep), class_labels=labels).sample
                for labels in (torch.tensor(LABELS), torch.tensor((10, 10)))
            ]
            latents = latents - 0.1 * (1.5 * noise[0] - 0.5 * noise[1])

    def calibrate(calls_per_step: int) -> Sensitivity:
        return soda_compile.calibrate(
            pipe.transformer, loop, generations=1, max_interval=2, calls_per_step=calls_per_step
        )

    with pytest.raises(soda_compile.SensitivityError, match=r"'timestep' has each value twice.*calls_per_step=2"):
        calibrate(1)
    measured = calibrate(2).info
    assert (measured.steps, measured.calls_per_step) == (len(timesteps), 2)
    assert (measured.timestep_input, measured.timesteps) == ("timestep", tuple(map(float, timesteps)))
