"""Ways to condition a pipeline that change what its denoiser computes, from call to call or from step to step.

Perturbed attention, a ControlNet that is on in some steps, adapters for images, keys and values kept between steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import diffusers
import PIL.Image
import pytest
import torch
from diffusers.models.embeddings import ImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from families import POOLED_WIDTH, TEXT_TOKENS, TEXT_WIDTH
from pipelines import NO_TEXT_2, NO_TEXT_3, PIPELINES, STEPS, TinyPipeline, close, sd3_plan, vae
from pipelines import SMALL_SD3 as SD3
from random_plans import random_plan
from thorough import gated
from torch import Tensor, nn

import soda_compile
from soda_compile import stats
from soda_compile.plans.plan import Plan, compute_all_plan

PAG = {"guidance_scale": 5.0, "pag_scale": 3.0}
FLUX = PIPELINES["flux"]


pytestmark = pytest.mark.usefixtures("eager")


def compute_all(regions: tuple[str, ...], calls_per_step: int = 2) -> Plan:
    return replace(compute_all_plan(regions, STEPS), calls_per_step=calls_per_step)


def all_follow(pipe: Any, calls: int) -> None:
    """Asserts that each call followed the plan."""
    counted = stats(pipe)["transformer"]
    assert (counted["calls"], counted["misses"]) == (calls, {}), counted["reasons"]


# Perturbed attention: further samples of the batch whose attention is the identity in some layers


def pag_pipeline(model: nn.Module) -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.StableDiffusion3PAGPipeline(
        transformer=model, scheduler=scheduler, pag_applied_layers=["blocks.0"], **NO_TEXT_3
    )


@pytest.mark.thorough
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_perturbed_attention(guidance: float) -> None:
    tiny = replace(SD3, assemble=pag_pipeline)
    pipe, plain = tiny.build(), tiny.build()
    soda_compile.accelerate(pipe, compute_all(tuple(SD3.regions), 1))
    for scale in (3.0, 0.0, 3.0):
        options = {"guidance_scale": guidance, "pag_scale": scale}
        close(tiny.draw(pipe, **options), tiny.draw(plain, **options))
    all_follow(pipe, 3 * STEPS)
    soda_compile.restore(pipe)
    soda_compile.accelerate(pipe, sd3_plan())
    assert (tiny.draw(pipe, **PAG) - tiny.draw(plain, **PAG)).abs().max() > 1e-3
    all_follow(pipe, 4 * STEPS)


# A ControlNet adds its residuals in some of the steps


class Sometimes(diffusers.SD3ControlNetModel):
    """Gives no residuals where they would be zero."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return super().forward(*arguments, **options) if options["conditioning_scale"] else (None,)


def control_pipeline(kind: type[diffusers.SD3ControlNetModel]) -> Callable[[nn.Module], Any]:
    def assemble(model: nn.Module) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = {name: value for name, value in model.config.items() if name[0] != "_"}  # type: ignore[union-attr, operator]
            config["num_layers"] = 1
            controlnet = kind.from_config({**config, "extra_conditioning_channels": 0}).eval()
            for parameter in controlnet.parameters():
                nn.init.normal_(parameter, std=0.2)
        parts = {**NO_TEXT_3, "vae": vae()}
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        return diffusers.StableDiffusion3ControlNetPipeline(
            transformer=model, scheduler=scheduler, controlnet=controlnet, **parts
        )

    return assemble


def controlled(generator: torch.Generator, batch: int) -> dict[str, Any]:
    torch.manual_seed(0)  # the image is encoded with the noise of the process
    return {
        **{name: value for name, value in SD3.inputs(generator, batch).items() if name not in ("height", "width")},
        "control_image": torch.rand(batch, 3, 32, 32, generator=generator),
        "controlnet_pooled_projections": torch.zeros(batch, POOLED_WIDTH),
    }


@pytest.mark.parametrize(
    ("kind", "start", "end"),
    gated((diffusers.SD3ControlNetModel, 0.3, 0.8), others=[(Sometimes, 0.3, 0.8), (Sometimes, 0.0, 0.5)]),
)
def test_a_controlnet_in_some_steps(kind: type, start: float, end: float) -> None:
    tiny = replace(SD3, assemble=control_pipeline(kind), inputs=controlled)
    options = {"control_guidance_start": start, "control_guidance_end": end}
    pipe, plain = tiny.build(), tiny.build()
    soda_compile.accelerate(pipe, compute_all(tuple(SD3.regions), 1))
    for each in ({}, options):
        close(tiny.draw(pipe, **each), tiny.draw(plain, **each))
    all_follow(pipe, 2 * STEPS)
    soda_compile.restore(pipe)
    plan = sd3_plan()
    soda_compile.accelerate(pipe, plan)
    for _ in range(2):
        close(tiny.draw(pipe, **options), tiny.draw_by_hooks(plain, plan, **options))
    all_follow(pipe, 4 * STEPS)


# An adapter for images: attention processors with weights of their own


def adapt(pipe: Any) -> None:
    """Loads a random adapter, as ``load_ip_adapter`` does from a file."""
    model = pipe.transformer
    weights: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        width = model.config.num_attention_heads * model.config.attention_head_dim
        for number in range(len(model.transformer_blocks)):
            processor = FluxIPAdapterAttnProcessor(width, TEXT_WIDTH)
            for name, value in processor.state_dict().items():
                weights[f"{number}.{name.replace('.0.', '.')}"] = value
        projection = ImageProjection(POOLED_WIDTH, TEXT_WIDTH, num_image_text_embeds=4)
        image = {name.replace("image_embeds", "proj"): value for name, value in projection.state_dict().items()}
    model._load_ip_adapter_weights([{"ip_adapter": weights, "image_proj": image}], low_cpu_mem_usage=False)


def with_image(generator: torch.Generator, batch: int) -> dict[str, Any]:
    images = [torch.randn(batch, 1, POOLED_WIDTH, generator=generator)]
    return {
        **FLUX.inputs(generator, batch),
        "ip_adapter_image_embeds": images,
        "negative_ip_adapter_image_embeds": [torch.zeros_like(images[0])],
    }


def with_encoder(model: nn.Module) -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.FluxPipeline(
        transformer=model, scheduler=scheduler, image_encoder=None, feature_extractor=None, **NO_TEXT_2
    )


IMAGED = replace(FLUX, assemble=with_encoder, inputs=with_image)


@cache
def imaged_regions() -> tuple[str, ...]:
    """Regions of the adapted denoiser, found at its first call."""
    pipe, found = IMAGED.build(), []
    adapt(pipe)
    pipe.transformer.register_forward_pre_hook(lambda _, args, kwargs: found.append((args, kwargs)), with_kwargs=True)
    IMAGED.draw(pipe, num_inference_steps=1)
    pipe = IMAGED.build()
    adapt(pipe)
    args, kwargs = found[0]
    return soda_compile.inspect(pipe.transformer, *args, **kwargs).region_names


@pytest.mark.thorough
def test_an_adapter_for_images() -> None:
    names = imaged_regions()
    pipe, plain = IMAGED.build(), IMAGED.build()
    for each in (pipe, plain):
        adapt(each)
    soda_compile.accelerate(pipe, compute_all(names))
    for scale in (1.0, 0.5, 0.0):
        for each in (pipe, plain):
            each.set_ip_adapter_scale(scale)
        close(IMAGED.draw(pipe), IMAGED.draw(plain))
    all_follow(pipe, 3 * 2 * STEPS)


@pytest.mark.thorough
def test_a_plan_with_an_adapter_for_images() -> None:
    names = imaged_regions()
    pipe, plain = IMAGED.build(), IMAGED.build()
    for each in (pipe, plain):
        adapt(each)
    plan = replace(random_plan(3, names, STEPS), calls_per_step=2)
    soda_compile.accelerate(pipe, plan)
    found = IMAGED.draw(pipe)
    assert (found - IMAGED.draw(plain)).abs().max() > 1e-3
    close(IMAGED.draw(pipe), found)
    all_follow(pipe, 2 * 2 * STEPS)


@pytest.mark.thorough
def test_an_adapter_for_images_that_comes_after_the_plan() -> None:
    """The plan is followed where it still fits; where it does not, the denoiser runs without it and says so."""
    pipe, plain = IMAGED.build(), IMAGED.build()
    soda_compile.accelerate(pipe, compute_all(tuple(FLUX.regions)))
    close(FLUX.draw(pipe), FLUX.draw(plain))
    for each in (pipe, plain):
        adapt(each)
    close(IMAGED.draw(pipe), IMAGED.draw(plain))
    counted = stats(pipe)["transformer"]
    assert counted["calls"] + sum(counted["misses"].values()) == 2 * 2 * STEPS
    assert set(counted["misses"]) <= set(counted["reasons"])
    for each in (pipe, plain):
        each.unload_ip_adapter()
    close(FLUX.draw(pipe), FLUX.draw(plain))


# Keys and values of a reference image, kept from the first step on


def kv_pipeline(model: nn.Module) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        coder = diffusers.AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), block_out_channels=(4,),
            layers_per_block=1, latent_channels=1, norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False,
        ).eval()  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    parts = {"vae": coder, "text_encoder": None, "tokenizer": None}
    return diffusers.Flux2KleinKVPipeline(transformer=model, scheduler=scheduler, **parts)


def flux2() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return diffusers.Flux2Transformer2DModel(
            in_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1,
            joint_attention_dim=TEXT_WIDTH, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
        ).eval()  # fmt: skip


def referenced(generator: torch.Generator, batch: int) -> dict[str, Any]:
    embeds = torch.randn(batch, TEXT_TOKENS, TEXT_WIDTH, generator=generator)
    return {"prompt_embeds": embeds, "height": 32, "width": 32, "output_type": "latent"}


KV_REGIONS = (
    "transformer_blocks.0.attn",
    "transformer_blocks.0.ff",
    "transformer_blocks.0.ff_context",
    "single_transformer_blocks.0.attn",
)
KV = TinyPipeline("flux2 kv", kv_pipeline, flux2, {}, referenced)


@dataclass(frozen=True)
class _Reference:
    """Draws with images that the keys and values are taken from."""

    size: int

    def draw(self, pipe: Any) -> Tensor:
        return KV.draw(pipe, image=PIL.Image.new("RGB", (self.size, self.size), "teal"))


@pytest.mark.thorough
def test_keys_and_values_that_are_kept_between_steps() -> None:
    """The first step has the reference among its tokens, so the branch begins anew at the second."""
    pipe, plain = KV.build(), KV.build()
    soda_compile.accelerate(pipe, compute_all(KV_REGIONS, 1))
    for draw in (KV.draw, _Reference(64).draw, KV.draw):
        close(draw(pipe), draw(plain))
    all_follow(pipe, 3 * STEPS)


@pytest.mark.thorough
def test_a_plan_with_keys_and_values_that_are_kept() -> None:
    pipe, plain = KV.build(), KV.build()
    plan: Plan = random_plan(2, KV_REGIONS, STEPS)
    soda_compile.accelerate(pipe, plan)
    found = _Reference(64).draw(pipe)
    assert (found - _Reference(64).draw(plain)).abs().max() > 1e-4
    close(_Reference(64).draw(pipe), found)
    all_follow(pipe, 2 * STEPS)
