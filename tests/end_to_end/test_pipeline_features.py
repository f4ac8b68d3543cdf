"""What users do with pipelines: schedules, stages, guidance, offloading, adapters, dtypes. No Inductor here."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

pytest.importorskip("diffusers")

import diffusers
from diffusers.hooks.layerwise_casting import apply_layerwise_casting_hook
from families import FAMILIES
from pipelines import NO_TEXT_3, PIPELINES, STEPS, attributes, close, planned_by_hooks, same, samples, sd3_plan, vae
from pipelines import SMALL_SD3 as SD3
from random_plans import random_plan
from thorough import gated

import soda_compile
from soda_compile import stats
from soda_compile.errors import OptionError, SensitivityError, TrajectoryError
from soda_compile.plans.plan import Plan, compute_all_plan
from soda_compile.plans.resume import resume_at

DIT, FLUX, WAN = (PIPELINES[name] for name in ("dit", "flux", "wan"))


pytestmark = pytest.mark.usefixtures("eager")


# Schedules


def test_a_solver_of_several_calls(tmp_path: Path) -> None:
    """Heun calls the denoiser twice for each of its steps but the last: nine steps of the clock."""
    pipe = SD3.build()
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    with planned_by_hooks(pipe.transformer, SD3.regions, plan := sd3_plan(steps=2 * STEPS - 1)):
        expected = SD3.draw(pipe)
    soda_compile.accelerate(pipe, plan)
    close(SD3.draw(pipe), expected)
    soda_compile.restore(pipe)
    options = {"num_inference_steps": STEPS, "calibrate_with": samples(SD3), "cache": tmp_path, "closest": 0}
    soda_compile.accelerate(pipe, anchors=4, **options)
    same(SD3.draw(pipe), SD3.draw(pipe))


@pytest.mark.thorough
def test_image_to_image_follows_the_tail_of_the_plan(tmp_path: Path) -> None:
    made = SD3.build()
    pipe = diffusers.StableDiffusion3Img2ImgPipeline(
        transformer=made.transformer, scheduler=made.scheduler, **{**NO_TEXT_3, "vae": vae()}
    )
    pipe.set_progress_bar_config(disable=True)
    image = torch.randn(1, 4, 8, 8, generator=Generator().manual_seed(3))
    sizes = {"height": None, "width": None}

    def draw(strength: float) -> Tensor:
        return SD3.draw(pipe, num_inference_steps=10, image=image, strength=strength, **sizes)

    plan = sd3_plan(steps=10)
    with planned_by_hooks(pipe.transformer, SD3.regions, resume_at(plan, 4)) as calls:
        expected = draw(0.6)
    assert len(calls) == 6
    soda_compile.accelerate(pipe, plan)
    close(draw(0.6), expected)
    soda_compile.restore(pipe)

    inputs = [{**samples(SD3)[0], **sizes, "image": image, "strength": 0.6}]
    options = {"num_inference_steps": 10, "calibrate_with": inputs, "cache": tmp_path, "closest": 0}
    soda_compile.accelerate(pipe, anchors=3, **options)
    fast, reached = draw(0.6), stats(pipe)["transformer"]
    draw(0.3)
    assert stats(pipe)["transformer"]["misses"] == reached["misses"] == {}
    draw(0.9)
    assert stats(pipe)["transformer"]["misses"] == {}, "steps 1 to 3 compute"
    same(draw(0.6), fast)
    soda_compile.restore(pipe)
    given = Plan.load(next(tmp_path.glob("*/*.plan.json")))
    soda_compile.accelerate(pipe, given, on_miss="error")
    same(draw(0.6), fast)
    with pytest.raises(TrajectoryError, match="called at step 1 of the schedule, but its plan starts at step 4"):
        draw(0.9)


def test_steps_that_the_scheduler_is_not_told_of_are_noticed() -> None:
    pipe = DIT.build()

    def loop(seed: int) -> None:
        pipe.scheduler.set_timesteps(STEPS)
        for timestep in pipe.scheduler.timesteps:
            pipe.transformer(torch.zeros(1, 4, 8, 8), timestep=timestep.reshape(1), class_labels=torch.tensor([3]))

    with pytest.raises(SensitivityError, match=r"before DDIMScheduler\.step was called.*a loop of your own"):
        soda_compile.calibrate(pipe, loop, generations=1, max_interval=2)


# Several denoisers, several calls, several pipelines


@pytest.mark.thorough
def test_two_denoisers_each_have_their_part(tmp_path: Path) -> None:
    single = WAN.build()
    second = FAMILIES["wan"].build()
    with torch.no_grad():
        for number, parameter in enumerate(second.parameters()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=Generator().manual_seed(number))
    pipe = diffusers.WanPipeline(None, None, None, single.scheduler, single.transformer, second, boundary_ratio=0.85)
    pipe.set_progress_bar_config(disable=True)
    plain, original = WAN.draw(pipe, num_inference_steps=6), WAN.draw(pipe, num_inference_steps=8)
    assert (pipe.scheduler.timesteps >= 850).sum() == 3
    before = attributes(pipe, "transformer", "transformer_2")
    options = {"num_inference_steps": 8, "calibrate_with": samples(WAN), "cache": tmp_path}
    with pytest.raises(OptionError, match="anchors=4 for the denoisers transformer, transformer_2"):
        soda_compile.accelerate(pipe, anchors=4, **options)
    soda_compile.accelerate(pipe, speedup=1.5, **options)
    fast = WAN.draw(pipe, num_inference_steps=8)
    assert (fast - original).abs().max() > 1e-2
    same(WAN.draw(pipe, num_inference_steps=8), fast)
    WAN.draw(pipe, num_inference_steps=8, guidance_scale=3.0)
    assert [each["misses"] for each in stats(pipe).values()] == [{}, {}], "what was measured at 5 serves"
    close(WAN.draw(pipe, num_inference_steps=6), plain)
    for each in stats(pipe).values():
        assert "where its part begins in another schedule is not known" in each["reasons"]["outside"]
    soda_compile.restore(pipe)
    assert attributes(pipe, "transformer", "transformer_2") == before
    same(WAN.draw(pipe, num_inference_steps=8), original)

    plans = {name: Plan.load(next(tmp_path.glob(f"*/{name}.*.plan.json"))) for name in ("transformer", "transformer_2")}
    assert [plan.steps for plan in plans.values()] == [3, 5]
    with (
        planned_by_hooks(pipe.transformer, WAN.regions, plans["transformer"], 2) as first,
        planned_by_hooks(pipe.transformer_2, WAN.regions, plans["transformer_2"], 2) as later,
    ):
        close(fast, WAN.draw(pipe, num_inference_steps=8))
    assert (len(first), len(later)) == (6, 10)
    with pytest.raises(OptionError, match="plans are given for transformer, but the pipeline has transformer, tra"):
        soda_compile.accelerate(pipe, plans["transformer"])
    soda_compile.accelerate(pipe, plans)
    same(WAN.draw(pipe, num_inference_steps=8), fast)


@pytest.mark.thorough
def test_a_named_call_that_comes_and_goes_keeps_its_own_values() -> None:
    """Guidance that is on for some steps only: cond goes on, uncond starts anew."""
    pipe, plan = FLUX.build(), random_plan(3, tuple(FLUX.regions), STEPS)
    inputs = FAMILIES["flux"].trajectory(STEPS, batch=1)
    other = [{**each, "hidden_states": -each["hidden_states"]} for each in inputs]
    with planned_by_hooks(pipe.transformer, FLUX.regions, plan), torch.no_grad():
        cond = [pipe.transformer(**each)[0] for each in inputs]
    with planned_by_hooks(pipe.transformer, FLUX.regions, resume_at(plan, 2)), torch.no_grad():
        uncond = [pipe.transformer(**each)[0] for each in other[2:]]
    soda_compile.accelerate(pipe, plan)
    pipe.scheduler.set_timesteps(STEPS)
    latents = torch.zeros(1, 16, 8)
    for step, timestep in enumerate(pipe.scheduler.timesteps):
        with torch.no_grad():
            if step >= 2:
                with pipe.transformer.cache_context("uncond"):
                    close(pipe.transformer(**other[step])[0], uncond[step - 2])
            with pipe.transformer.cache_context("cond"):
                close(pipe.transformer(**inputs[step])[0], cond[step])
        pipe.scheduler.step(latents, timestep, latents)


@pytest.mark.thorough
def test_two_pipelines_with_different_plans_take_turns() -> None:
    pipes, plans = [SD3.build(), SD3.build()], [sd3_plan(3), sd3_plan(4)]
    expected = [SD3.draw_by_hooks(pipe, plan) for pipe, plan in zip(pipes, plans, strict=True)]
    for pipe, plan in zip(pipes, plans, strict=True):
        soda_compile.accelerate(pipe, plan)

    def between(*_: Any) -> dict[str, Any]:
        close(SD3.draw(pipes[1]), expected[1])
        return {}

    close(SD3.draw(pipes[0], callback_on_step_end=between), expected[0])


@pytest.mark.thorough
def test_another_batch_and_resolution() -> None:
    pipe, plan = SD3.build(), sd3_plan()
    variants: list[dict[str, Any]] = [{}, {"batch": 2}, {"height": 48}]
    expected = [SD3.draw_by_hooks(pipe, plan, **variant) for variant in variants]
    soda_compile.accelerate(pipe, plan)
    for number in (0, 1, 2, 0):
        close(SD3.draw(pipe, **variants[number]), expected[number])


@pytest.mark.thorough
def test_guidance_that_a_callback_switches_off() -> None:
    """The batch is halved in the middle: the new shape follows the tail of the plan."""
    pipe = SD3.build()
    names = ["latents", "prompt_embeds", "pooled_prompt_embeds"]

    def switch_off(pipe: Any, step: int, timestep: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        if step != 1:
            return {}
        pipe._guidance_scale = 0.0
        return {name: values[name][1:] for name in names[1:]}

    def draw() -> Tensor:
        return SD3.draw(pipe, callback_on_step_end=switch_off, callback_on_step_end_tensor_inputs=names)

    original = draw()
    for plan, exact in ((compute_all_plan(tuple(SD3.regions), STEPS), True), (sd3_plan(), False)):
        soda_compile.accelerate(pipe, plan)
        fast = draw()
        assert torch.allclose(fast, original, rtol=1e-4, atol=1e-4) is exact
        same(draw(), fast)
        soda_compile.restore(pipe)


def test_a_copied_denoiser_is_not_tied_and_a_copied_scheduler_by_itself() -> None:
    pipe = SD3.build()
    original = SD3.draw(pipe)
    soda_compile.accelerate(pipe, sd3_plan())
    fast = SD3.draw(pipe)
    scheduler, model = copy.deepcopy(pipe.scheduler), copy.deepcopy(pipe.transformer)

    def disturb(*_: Any) -> dict[str, Any]:
        scheduler.set_timesteps(3)
        scheduler.step(torch.zeros(1), scheduler.timesteps[0], torch.zeros(1))
        return {}

    same(SD3.draw(pipe, callback_on_step_end=disturb), fast)
    clean = SD3.build()
    clean.transformer = model
    same(SD3.draw(clean), original)
    with pytest.raises(OptionError, match="cannot be copied"):
        copy.deepcopy(pipe)


def test_a_shallow_or_pickled_copy_of_a_denoiser_is_not_tied_either() -> None:
    pipe = SD3.build()
    original = SD3.draw(pipe)
    soda_compile.accelerate(pipe, sd3_plan())
    fast = SD3.draw(pipe)
    for model in (copy.copy(pipe.transformer), pickle.loads(pickle.dumps(pipe.transformer))):
        clean = SD3.build()
        clean.transformer = model
        same(SD3.draw(clean), original)
    same(SD3.draw(pipe), fast)


# Where the weights are, and what is done to them


def offload_to_cpu(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def offload_blocks(pipe: Any) -> None:
    device = torch.device("cpu")
    pipe.transformer.enable_group_offload(device, device, offload_type="block_level", num_blocks_per_group=1)


def add_lora(pipe: Any) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["to_q", "to_v", "to_out.0"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe.transformer.add_adapter(config)


@pytest.mark.parametrize("change", gated(add_lora, others=[offload_blocks, offload_to_cpu]))
def test_hooks_and_adapters_may_come_before_or_after(change: Callable[[Any], None]) -> None:
    plan = sd3_plan()
    pipe = SD3.build()
    if change is add_lora:
        change(pipe)
    original, expected = SD3.draw(pipe), SD3.draw_by_hooks(pipe, plan)
    if change is not add_lora:
        change(pipe)
    soda_compile.accelerate(pipe, plan)
    close(SD3.draw(pipe), expected)
    with torch._dynamo.config.patch(error_on_recompile=True):
        close(SD3.draw(pipe), expected)
    soda_compile.restore(pipe)
    same(SD3.draw(pipe), original)

    pipe = SD3.build()
    soda_compile.accelerate(pipe, plan)
    change(pipe)
    close(SD3.draw(pipe), expected)
    soda_compile.restore(pipe)
    same(SD3.draw(pipe), original)


@pytest.mark.parametrize("dtype", gated(torch.bfloat16, others=[torch.float16]))
def test_narrow_dtypes_and_inference_mode(dtype: torch.dtype) -> None:
    pipe, plan = SD3.build(), sd3_plan()
    pipe.transformer.to(dtype)
    inputs = {name: value.to(dtype) for name, value in samples(SD3)[0].items() if isinstance(value, Tensor)}
    with planned_by_hooks(pipe.transformer, SD3.regions, plan):
        expected = SD3.draw(pipe, **inputs)
    soda_compile.accelerate(pipe, plan)
    close(fast := SD3.draw(pipe, **inputs), expected)
    with torch.inference_mode():
        same(SD3.draw(pipe, **inputs), fast)
    same(SD3.draw(pipe, **inputs), fast)


def test_quantised_weights() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    pipe, plan = SD3.build(), sd3_plan()
    quantization.quantize_(pipe.transformer, quantization.Int8WeightOnlyConfig())
    original, expected = SD3.draw(pipe), SD3.draw_by_hooks(pipe, plan)
    soda_compile.accelerate(pipe, plan)
    close(SD3.draw(pipe), expected)
    soda_compile.restore(pipe)
    same(SD3.draw(pipe), original)


def cast_layers(pipe: Any, **options: Any) -> None:
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32, **options)


def cast_with_norms(pipe: Any) -> None:
    cast_layers(pipe, skip_modules_pattern=("pos_embed",))


def cast_everything_at_once(pipe: Any) -> None:
    """One hook, on the model itself."""
    apply_layerwise_casting_hook(pipe.transformer, torch.float8_e4m3fn, torch.float32, non_blocking=False)


def cast_a_block(pipe: Any) -> None:
    """A hook on a module that holds others."""
    block = pipe.transformer.transformer_blocks[0]
    apply_layerwise_casting_hook(block, torch.float8_e4m3fn, torch.float32, non_blocking=False)


def cast_offloaded(pipe: Any) -> None:
    cast_layers(pipe)
    offload_blocks(pipe)


def cast_with_lora(pipe: Any) -> None:
    add_lora(pipe)
    cast_layers(pipe)


@pytest.mark.parametrize(
    "change",
    gated(cast_everything_at_once, others=[cast_layers, cast_with_norms, cast_a_block, cast_offloaded, cast_with_lora]),
)
def test_layerwise_casting(change: Callable[[Any], None]) -> None:
    """Weights are stored in eight bits and cast for each call, here as a part of the graph."""
    pipe = SD3.build()
    uncast = SD3.draw(pipe)
    change(pipe)
    original = SD3.draw(pipe)
    assert not torch.allclose(original, uncast, rtol=1e-3, atol=1e-3)
    dtypes = [parameter.dtype for parameter in pipe.transformer.parameters()]
    assert torch.float8_e4m3fn in dtypes
    before = attributes(pipe, "transformer")

    made = soda_compile.calibrate(pipe, lambda seed: SD3.draw(pipe, seed), generations=1, max_interval=2)
    assert set(made.info.regions) == set(SD3.regions)
    everything = compute_all_plan(made.info.regions, STEPS, fingerprint=made.info.fingerprint)
    soda_compile.accelerate(pipe, everything)
    same(SD3.draw(pipe), original)
    with torch._dynamo.config.patch(error_on_recompile=True):
        same(SD3.draw(pipe), original)
    soda_compile.restore(pipe)

    plan = sd3_plan()
    expected = SD3.draw_by_hooks(pipe, plan)
    soda_compile.accelerate(pipe, plan)
    close(SD3.draw(pipe), expected)
    soda_compile.restore(pipe)
    assert attributes(pipe, "transformer") == before
    assert [parameter.dtype for parameter in pipe.transformer.parameters()] == dtypes
    same(SD3.draw(pipe), original)


@pytest.mark.thorough
def test_layerwise_casting_that_begins_later() -> None:
    pipe = SD3.build()
    soda_compile.accelerate(pipe, sd3_plan())
    SD3.draw(pipe)
    cast_layers(pipe)
    fast = SD3.draw(pipe)
    soda_compile.restore(pipe)
    close(fast, SD3.draw_by_hooks(pipe, sd3_plan()))


@pytest.mark.thorough
def test_channels_last() -> None:
    pipe, plan = SD3.build(), sd3_plan()
    pipe.transformer.to(memory_format=torch.channels_last)
    expected = SD3.draw_by_hooks(pipe, plan)
    soda_compile.accelerate(pipe, plan)
    close(SD3.draw(pipe), expected)
