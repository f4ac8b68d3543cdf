"""Seven diffusers model families, tiny and random, with their residual modules written down by hand.

The lists of regions come from reading the diffusers source, not from the compiler, so that the compiler's own
region discovery can be checked against them.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import diffusers
import torch
from torch import Generator, Tensor, nn

import soda_compile
from soda_compile.ir.structure import Structure

HEADS, HEAD_DIM = 2, 16
WIDTH = HEADS * HEAD_DIM
TEXT_TOKENS, TEXT_WIDTH, POOLED_WIDTH = 6, 24, 20


@dataclass(frozen=True)
class Region:
    """One residual module and the tensors between its heavy work and the residual add.

    Attributes:
        cuts: Paths of the modules (linears) whose outputs, taken together, are the cut: the last heavy operators on
            the way to the residual add, before the gate.
    """

    cuts: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """A tiny random model of one diffusers family.

    Attributes:
        name: Key in `FAMILIES`.
        construct: Makes the model with the library's own initialisation.
        sample_shape: Shape of ``hidden_states`` without the batch axis.
        timestep: Maps the noise level in (0, 1] and the batch size to the model's ``timestep`` input.
        conditioning: Maps a generator and the batch size to the inputs that stay constant over a trajectory.
        regions: Expected regions by name (module path), in the order in which the model runs them.
    """

    name: str
    construct: Callable[[], nn.Module]
    sample_shape: tuple[int, ...]
    timestep: Callable[[float, int], Tensor]
    conditioning: Callable[[Generator, int], dict[str, Any]]
    regions: dict[str, Region]

    def build(self) -> nn.Module:
        """Returns the model: the same weights on every call, eval mode, float32, no parameter left at zero."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.construct().eval().float()
            for parameter in model.parameters():
                if not parameter.detach().any():
                    nn.init.normal_(parameter, std=0.05)
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and "blocks." in name and "norm" not in name:
                module.weight.data.mul_(2)  # untrained branches are so weak that reusing them would hardly show
        return model

    def inputs(self, step: int, steps: int, batch: int = 2) -> dict[str, Any]:
        """Returns the keyword inputs of the denoising call ``step`` of ``steps``.

        ``hidden_states`` turns by one radian over the trajectory, so neighbouring steps are close but never equal;
        ``timestep`` falls; all other inputs have the same values at every step.
        """
        if not 0 <= step < steps:
            raise ValueError(f"step must be in 0..{steps - 1}, got {step}")
        generator = Generator().manual_seed(1)
        start, direction = torch.randn(2, batch, *self.sample_shape, generator=generator)
        angle = step / steps
        return {
            "hidden_states": math.cos(angle) * start + math.sin(angle) * direction,
            "timestep": self.timestep(1 - step / steps, batch),
            **self.conditioning(generator, batch),
            "return_dict": False,
        }

    def trajectory(self, steps: int, batch: int = 2) -> list[dict[str, Any]]:
        """Returns the inputs of all ``steps`` calls of one trajectory."""
        return [self.inputs(step, steps, batch) for step in range(steps)]


def _discrete(level: float, batch: int) -> Tensor:
    """Timesteps 1..999, int64, shape (batch,)."""
    return torch.full((batch,), round(999 * level), dtype=torch.int64)


def _continuous(level: float, batch: int) -> Tensor:
    """Timesteps in (0, 1000], float32, shape (batch,)."""
    return torch.full((batch,), 1000 * level)


def _unit(level: float, batch: int) -> Tensor:
    """Timesteps in (0, 1], float32, shape (batch,)."""
    return torch.full((batch,), level)


def _text(generator: Generator, batch: int) -> dict[str, Any]:
    return {"encoder_hidden_states": torch.randn(batch, TEXT_TOKENS, TEXT_WIDTH, generator=generator)}


def _pooled_text(generator: Generator, batch: int) -> dict[str, Any]:
    return {
        **_text(generator, batch),
        "pooled_projections": torch.randn(batch, POOLED_WIDTH, generator=generator),
    }


def _labels(generator: Generator, batch: int) -> dict[str, Any]:
    return {"class_labels": torch.randint(10, (batch,), generator=generator)}


def _masked_text(generator: Generator, batch: int) -> dict[str, Any]:
    """Text whose last sample is padded, as PixArt pipelines pass it."""
    mask = torch.ones(batch, TEXT_TOKENS)
    mask[-1, TEXT_TOKENS - 2 :] = 0
    return {
        **_text(generator, batch),
        "encoder_attention_mask": mask,
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _flux_conditioning(generator: Generator, batch: int) -> dict[str, Any]:
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    return {
        **_pooled_text(generator, batch),
        "img_ids": torch.stack([torch.zeros(16), rows.flatten(), columns.flatten()], dim=-1),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3),
        "guidance": torch.full((batch,), 3.5),
    }


def _dit() -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=4,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )


def _pixart() -> nn.Module:
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=4,
        num_layers=2,
        cross_attention_dim=WIDTH,
        caption_channels=TEXT_WIDTH,
        sample_size=8,
        patch_size=2,
    )


def _sd3() -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        pos_embed_max_size=8,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=POOLED_WIDTH,
    )


def _flux() -> nn.Module:
    return diffusers.FluxTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=POOLED_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )


def _cogvideox() -> nn.Module:
    # The sample is 8 x 8, not 16 x 16: the model then builds its table of positions inside forward.
    return diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=TEXT_WIDTH,
        num_layers=2,
        sample_width=16,
        sample_height=16,
        sample_frames=9,
        patch_size=2,
        max_text_seq_length=TEXT_TOKENS,
    )


def _wan() -> nn.Module:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=4,
        out_channels=4,
        text_dim=TEXT_WIDTH,
        freq_dim=32,
        ffn_dim=2 * WIDTH,
        num_layers=2,
        rope_max_seq_len=32,
    )


def _latte() -> nn.Module:
    return diffusers.LatteTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=4,
        num_layers=2,
        cross_attention_dim=WIDTH,
        caption_channels=TEXT_WIDTH,
        attention_bias=True,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        video_length=3,
    )


def _modules(block: str, *names: str) -> Iterator[tuple[str, Region]]:
    """Attentions end in ``to_out.0``, feed-forwards in ``net.2``."""
    for name in names:
        last = "net.2" if name.startswith("ff") else "to_out.0"
        yield f"{block}.{name}", Region((f"{block}.{name}.{last}",))


def _joint_block(block: str) -> Iterator[tuple[str, Region]]:
    """Two streams, image and text: their attentions are one region, their feed-forwards are two."""
    yield f"{block}.attn", Region((f"{block}.attn.to_out.0", f"{block}.attn.to_add_out"))
    yield from _modules(block, "ff", "ff_context")


def _sd3_regions() -> Iterator[tuple[str, Region]]:
    yield from _joint_block("transformer_blocks.0")
    yield from _modules("transformer_blocks.1", "attn", "ff")  # context_pre_only: the text stream ends here


def _flux_regions() -> Iterator[tuple[str, Region]]:
    for layer in range(2):
        yield from _joint_block(f"transformer_blocks.{layer}")
    for layer in range(2):
        # Attention and feed-forward run side by side and share one projection: the whole block is one region.
        yield f"single_transformer_blocks.{layer}", Region((f"single_transformer_blocks.{layer}.proj_out",))


def _latte_regions() -> Iterator[tuple[str, Region]]:
    for layer in range(2):
        yield from _modules(f"transformer_blocks.{layer}", "attn1", "attn2", "ff")
        yield from _modules(f"temporal_transformer_blocks.{layer}", "attn1", "ff")


def _stack(blocks: str, layers: int, *names: str) -> dict[str, Region]:
    return {name: region for i in range(layers) for name, region in _modules(f"{blocks}.{i}", *names)}


_ALL = (
    Family("dit", _dit, (4, 8, 8), _discrete, _labels, _stack("transformer_blocks", 3, "attn1", "ff")),
    Family(
        "pixart", _pixart, (4, 8, 8), _discrete, _masked_text, _stack("transformer_blocks", 2, "attn1", "attn2", "ff")
    ),
    Family("sd3", _sd3, (4, 8, 8), _continuous, _pooled_text, dict(_sd3_regions())),
    Family("flux", _flux, (16, 8), _unit, _flux_conditioning, dict(_flux_regions())),
    # CogVideoX runs text and image tokens as one sequence: one cut holds both.
    Family("cogvideox", _cogvideox, (3, 4, 8, 8), _discrete, _text, _stack("transformer_blocks", 2, "attn1", "ff")),
    Family("wan", _wan, (4, 3, 8, 8), _discrete, _text, _stack("blocks", 2, "attn1", "attn2", "ffn")),
    Family("latte", _latte, (4, 3, 8, 8), _discrete, _text, dict(_latte_regions())),
)

FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}


@cache
def structure_of(name: str, batch: int = 2) -> Structure:
    """What the compiler finds in a family's model; found once in a process, as it takes seconds."""
    family = FAMILIES[name]
    return soda_compile.inspect(family.build(), **family.inputs(0, 4, batch))
