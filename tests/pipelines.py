"""Eight diffusers pipelines with tiny random components: the library's own pipeline code and noise schedulers.

Text encoders are left out, their outputs are passed. Images stay latents where the pipeline can return them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from eager_reference import EagerReference
from families import FAMILIES, POOLED_WIDTH, TEXT_TOKENS, TEXT_WIDTH, Family, Region
from random_plans import random_plan
from torch import Generator, Tensor, nn

from soda_compile.plans.plan import Plan

STEPS = 5


@dataclass(frozen=True)
class TinyPipeline:
    """A pipeline and how it is called.

    Attributes:
        name: Key in `PIPELINES`.
        assemble: Makes it from its denoiser.
        denoiser: Makes the denoiser: the same weights on every call.
        regions: Expected regions by name.
        inputs: Maps a generator and the batch size to the arguments of a call beside the generator and the steps.
        calls_per_step: Denoiser calls in a step.
    """

    name: str
    assemble: Callable[[nn.Module], Any]
    denoiser: Callable[[], nn.Module]
    regions: dict[str, Region]
    inputs: Callable[[Generator, int], dict[str, Any]]
    calls_per_step: int = 1

    def build(self) -> Any:
        """Returns the pipeline, quiet, in eval mode: the same weights on every call."""
        pipe = self.assemble(self.denoiser())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def draw(self, pipe: Any, seed: int = 0, batch: int = 1, **options: Any) -> Tensor:
        """Returns the samples of one generation; the prompt is the same for every seed."""
        generator = Generator().manual_seed(seed)
        arguments = {"num_inference_steps": STEPS, **self.inputs(Generator().manual_seed(7), batch), **options}
        sample = pipe(**arguments, generator=generator, return_dict=False)[0]
        return torch.as_tensor(sample)

    def draw_by_hooks(self, pipe: Any, plan: Plan, **options: Any) -> Tensor:
        """Returns the samples of one generation under a plan that forward hooks carry out in eager mode."""
        with planned_by_hooks(pipe.transformer, self.regions, plan, self.calls_per_step):
            return self.draw(pipe, **options)


@contextmanager
def planned_by_hooks(
    model: nn.Module, regions: dict[str, Region], plan: Plan, calls_per_step: int = 1
) -> Iterator[list[int]]:
    """Lets a model follow a plan in eager mode, each call of a step by itself; yields a list with one entry a call."""
    branches = [EagerReference(model, regions, plan) for _ in range(calls_per_step)]
    forward, hooked, calls = model.forward, vars(model).get("forward"), []

    def planned(*arguments: Any, **options: Any) -> Any:
        step, branch = divmod(len(calls), calls_per_step)
        calls.append(branch)
        with branches[branch].step(step):
            return forward(*arguments, **options)

    model.forward = planned
    try:
        yield calls
    finally:
        del model.forward
        if hooked is not None:
            model.forward = hooked


@dataclass(frozen=True)
class _Text:
    """Arguments that stand for encoded prompts: name -> shape behind the batch axis, for positive and negative."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=lambda: {"prompt_embeds": (TEXT_TOKENS, TEXT_WIDTH)})
    masks: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def __call__(self, generator: Generator, batch: int) -> dict[str, Any]:
        made: dict[str, Any] = dict(self.extra)
        for prefix in ("", "negative_"):
            for name, shape in self.shapes.items():
                made[prefix + name] = torch.randn(batch, *shape, generator=generator)
            for name in self.masks:
                made[prefix + name] = torch.ones(batch, TEXT_TOKENS, dtype=torch.int64)
        return made


def dit() -> nn.Module:
    """A class-conditional DiT with the 1000 classes that its pipeline takes for granted."""
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )


def _changed(family: str, **changes: Any) -> nn.Module:
    """The family's model with another configuration."""
    model: Any = FAMILIES[family].construct()
    config = {name: value for name, value in model.config.items() if name[0] != "_"}
    return type(model).from_config({**config, **changes})


def latte() -> nn.Module:
    """With the second half of the channels that the pipeline takes off."""
    return _changed("latte", out_channels=8)


def qwen() -> nn.Module:
    """A Qwen-Image denoiser for two latent channels in patches of four."""
    return diffusers.QwenImageTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=2,
        num_layers=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
    )


def vae() -> nn.Module:
    """An image autoencoder that halves the size twice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            norm_num_groups=4,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ).eval()


def _joint(block: str, image: str, text: str) -> dict[str, Region]:
    return {
        f"{block}.attn": Region((f"{block}.attn.to_out.0", f"{block}.attn.to_add_out")),
        f"{block}.{image}": Region((f"{block}.{image}.net.2",)),
        f"{block}.{text}": Region((f"{block}.{text}.net.2",)),
    }


def _qwen_regions() -> dict[str, Region]:
    found = _joint("transformer_blocks.0", "img_mlp", "txt_mlp") | _joint("transformer_blocks.1", "img_mlp", "txt_mlp")
    del found["transformer_blocks.1.txt_mlp"]  # nothing reads the text after the last block
    found["transformer_blocks.1.attn"] = Region(("transformer_blocks.1.attn.to_out.0",))
    return found


def _dit_regions() -> dict[str, Region]:
    ends = {"attn1": "to_out.0", "ff": "net.2"}
    blocks = [f"transformer_blocks.{layer}" for layer in range(2)]
    return {f"{block}.{name}": Region((f"{block}.{name}.{end}",)) for block in blocks for name, end in ends.items()}


def _lively(construct: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """With the initialisation that `Family.build` uses."""
    return Family("", construct, (), None, None, {}).build  # type: ignore[arg-type]


def _classes(generator: Generator, batch: int) -> dict[str, Any]:
    return {"class_labels": [3, 7, 9][:batch], "output_type": "pt"}


NO_TEXT = {"text_encoder": None, "tokenizer": None, "vae": None}
NO_TEXT_2 = {**NO_TEXT, "text_encoder_2": None, "tokenizer_2": None}
NO_TEXT_3 = {**NO_TEXT_2, "text_encoder_3": None, "tokenizer_3": None}
LATENT = {"output_type": "latent", "height": 64, "width": 64}
VIDEO = {**LATENT, "num_frames": 9, "guidance_scale": 5.0}
POOLED = {"prompt_embeds": (TEXT_TOKENS, TEXT_WIDTH), "pooled_prompt_embeds": (POOLED_WIDTH,)}


def _assemble(pipeline: type, scheduler: Callable[[], Any], **parts: Any) -> Callable[[nn.Module], Any]:
    return lambda model: pipeline(
        transformer=model,
        scheduler=scheduler(),
        **{name: part() if callable(part) else part for name, part in parts.items()},
    )


def _of_family(name: str) -> dict[str, Any]:
    return {"denoiser": FAMILIES[name].build, "regions": FAMILIES[name].regions}


_ALL = (
    TinyPipeline(
        "dit",
        _assemble(diffusers.DiTPipeline, diffusers.DDIMScheduler, vae=vae),
        _lively(dit),
        _dit_regions(),
        _classes,
    ),
    TinyPipeline(
        "pixart",
        _assemble(diffusers.PixArtAlphaPipeline, diffusers.DPMSolverMultistepScheduler, **NO_TEXT),
        inputs=_Text(
            masks=("prompt_attention_mask",),
            extra={**LATENT, "use_resolution_binning": False, "negative_prompt": None},
        ),
        **_of_family("pixart"),
    ),
    TinyPipeline(
        "flux",
        _assemble(diffusers.FluxPipeline, diffusers.FlowMatchEulerDiscreteScheduler, **NO_TEXT_2),
        inputs=_Text(POOLED, extra={**LATENT, "true_cfg_scale": 2.0}),
        calls_per_step=2,
        **_of_family("flux"),
    ),
    TinyPipeline(
        "sd3",
        _assemble(diffusers.StableDiffusion3Pipeline, diffusers.FlowMatchEulerDiscreteScheduler, **NO_TEXT_3),
        inputs=_Text(POOLED, extra=LATENT),
        **_of_family("sd3"),
    ),
    TinyPipeline(
        "wan",
        _assemble(
            diffusers.WanPipeline,
            lambda: diffusers.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            **NO_TEXT,
        ),
        inputs=_Text(extra=VIDEO),
        calls_per_step=2,
        **_of_family("wan"),
    ),
    TinyPipeline(
        "cogvideox",
        _assemble(diffusers.CogVideoXPipeline, diffusers.CogVideoXDDIMScheduler, **NO_TEXT),
        inputs=_Text(extra=VIDEO),
        **_of_family("cogvideox"),
    ),
    TinyPipeline(
        "latte",
        _assemble(diffusers.LattePipeline, diffusers.DDIMScheduler, **NO_TEXT),
        _lively(latte),
        FAMILIES["latte"].regions,
        _Text(extra={**LATENT, "video_length": 3, "negative_prompt": None, "mask_feature": False}),
    ),
    TinyPipeline(
        "qwen",
        _assemble(
            diffusers.QwenImagePipeline,
            lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            **NO_TEXT,
        ),
        _lively(qwen),
        _qwen_regions(),
        _Text(masks=("prompt_embeds_mask",), extra={**LATENT, "true_cfg_scale": 2.0}),
        calls_per_step=2,
    ),
)


PIPELINES: dict[str, TinyPipeline] = {pipeline.name: pipeline for pipeline in _ALL}

SMALL_SD3 = PIPELINES["sd3"]
"""For tests of what does not depend on the model."""


def same(a: Tensor, b: Tensor) -> None:
    """Asserts equality bit for bit."""
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def close(a: Tensor, b: Tensor) -> None:
    """Asserts equality up to rounding, which the sampler passes on."""
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def attributes(pipe: Any, *names: str) -> list[set[str]]:
    """What is set on the pipeline, its scheduler and the named components: a trace left behind shows here."""
    return [set(vars(part)) for part in (pipe, pipe.scheduler, *(getattr(pipe, name) for name in names))]


def samples(tiny: TinyPipeline) -> list[dict[str, Any]]:
    """Inputs to calibrate with."""
    return [tiny.inputs(Generator().manual_seed(0), 1)]


def sd3_plan(seed: int = 3, steps: int = STEPS) -> Plan:
    """A random plan for ``SMALL_SD3``."""
    return random_plan(seed, tuple(SMALL_SD3.regions), steps)
