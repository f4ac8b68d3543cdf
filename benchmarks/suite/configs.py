"""The denoisers: those of the published checkpoints, and scaled-down relatives with the same blocks for a CPU.

Every entry is what the class in diffusers is constructed with, and the sizes of one denoiser call.
"""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Config:
    """A denoiser and its call.

    Attributes:
        name: Key on the command line.
        title: What it is.
        family: Which kind of inputs it takes, see ``models.INPUTS``.
        cls: Class in diffusers.
        arguments: Of the class.
        batch: Samples in a call; 2 where guidance runs both halves in one call.
        sample: Shape of the latents without the batch, as the denoiser takes them.
        text_tokens: Length of the text.
        large: Whether launching cannot be what its time goes to: the stricter bar of efficiency applies.
    """

    name: str
    title: str
    family: str
    cls: str
    arguments: dict[str, Any]
    batch: int
    sample: tuple[int, ...]
    text_tokens: int = 0
    large: bool = True


def _dit(size: int, heads: int = 16, width: int = 72, layers: int = 28) -> dict[str, Any]:
    return {
        "num_attention_heads": heads, "attention_head_dim": width, "num_layers": layers, "sample_size": size,
        "in_channels": 4, "out_channels": 8, "patch_size": 2, "num_embeds_ada_norm": 1000, "attention_bias": True,
        "activation_fn": "gelu-approximate", "norm_type": "ada_norm_zero", "norm_elementwise_affine": False,
    }  # fmt: skip


def _pixart(size: int, heads: int, width: int, layers: int, text: int) -> dict[str, Any]:
    return {
        "num_attention_heads": heads, "attention_head_dim": width, "num_layers": layers, "sample_size": size,
        "in_channels": 4, "out_channels": 8, "patch_size": 2, "cross_attention_dim": heads * width,
        "caption_channels": text, "use_additional_conditions": size == 128,
    }  # fmt: skip


def _flux(heads: int, double: int, single: int, text: int, pooled: int) -> dict[str, Any]:
    return {
        "in_channels": 64, "num_attention_heads": heads, "attention_head_dim": 128, "num_layers": double,
        "num_single_layers": single, "joint_attention_dim": text, "pooled_projection_dim": pooled,
        "guidance_embeds": True,
    }  # fmt: skip


def _sd3(size: int, heads: int, layers: int, text: int, pooled: int) -> dict[str, Any]:
    return {
        "sample_size": size, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": layers,
        "num_attention_heads": heads, "attention_head_dim": 64, "caption_projection_dim": 64 * heads,
        "joint_attention_dim": text, "pooled_projection_dim": pooled, "pos_embed_max_size": 192,
        "qk_norm": "rms_norm",
    }  # fmt: skip


def _wan(heads: int, ffn: int, layers: int, text: int = 4096) -> dict[str, Any]:
    return {
        "num_attention_heads": heads, "attention_head_dim": 128, "ffn_dim": ffn, "num_layers": layers,
        "in_channels": 16, "out_channels": 16, "text_dim": text, "freq_dim": 256, "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
    }  # fmt: skip


def _cogvideox(heads: int, layers: int, width: int, height: int, frames: int, text: int) -> dict[str, Any]:
    return {
        "num_attention_heads": heads, "attention_head_dim": 64, "num_layers": layers, "in_channels": 16,
        "out_channels": 16, "time_embed_dim": 512, "text_embed_dim": text, "sample_width": width,
        "sample_height": height, "sample_frames": frames, "patch_size": 2, "max_text_seq_length": 226,
        "use_rotary_positional_embeddings": True,
    }  # fmt: skip


def _hunyuan(heads: int, double: int, single: int, text: int, pooled: int) -> dict[str, Any]:
    return {
        "num_attention_heads": heads, "attention_head_dim": 128, "num_layers": double, "num_single_layers": single,
        "num_refiner_layers": 2, "text_embed_dim": text, "pooled_projection_dim": pooled, "guidance_embeds": True,
    }  # fmt: skip


_DIT, _PIXART, _FLUX, _SD3 = "DiTTransformer2DModel", "PixArtTransformer2DModel", "FluxTransformer2DModel", "SD3Transformer2DModel"  # fmt: skip # noqa: E501
_WAN, _COGVIDEOX, _HUNYUAN = "WanTransformer3DModel", "CogVideoXTransformer3DModel", "HunyuanVideoTransformer3DModel"

TRUE_SIZE = (
    Config("dit", "DiT-XL/2 256", "dit", _DIT, _dit(32), 2, (4, 32, 32), large=False),
    Config("dit512", "DiT-XL/2 512", "dit", _DIT, _dit(64), 2, (4, 64, 64), large=False),
    Config("pixart", "PixArt-alpha 1024", "pixart", _PIXART, _pixart(128, 16, 72, 28, 4096), 2, (4, 128, 128), 120),
    Config("flux", "FLUX.1-dev 1024", "flux", _FLUX, _flux(24, 19, 38, 4096, 768), 1, (4096, 64), 512),
    Config("sd3", "SD3.5-large 1024", "sd3", _SD3, _sd3(128, 38, 38, 4096, 2048), 2, (16, 128, 128), 333),
    Config("wan", "Wan 2.1 1.3B, 480p, 81 frames", "wan", _WAN, _wan(12, 8960, 30), 1, (16, 21, 60, 104), 512),
    Config("wan14b", "Wan 2.1 14B, 480p, 33 frames", "wan", _WAN, _wan(40, 13824, 40), 1, (16, 9, 60, 104), 512),
    Config(
        "cogvideox", "CogVideoX-5B, 480p, 49 frames", "cogvideox", _COGVIDEOX, _cogvideox(48, 42, 90, 60, 49, 4096),
        2, (13, 16, 60, 90), 226,
    ),
    Config(
        "hunyuan", "HunyuanVideo, 544p, 33 frames", "hunyuan", _HUNYUAN, _hunyuan(24, 20, 40, 4096, 768),
        1, (16, 9, 68, 120), 256,
    ),
)  # fmt: skip

SCALED_DOWN = (
    Config("dit", "DiT, 6 of 512", "dit", _DIT, _dit(32, 8, 64, 6), 2, (4, 32, 32), large=False),
    Config("pixart", "PixArt, 4 of 512", "pixart", _PIXART, _pixart(32, 8, 64, 4, 512), 2, (4, 32, 32), 64),
    Config("flux", "FLUX, 2+4 of 512", "flux", _FLUX, _flux(4, 2, 4, 512, 256), 1, (400, 64), 64),
    Config("sd3", "SD3.5, 4 of 512", "sd3", _SD3, _sd3(32, 8, 4, 512, 256), 2, (16, 32, 32), 64),
    Config("wan", "Wan, 4 of 512", "wan", _WAN, _wan(4, 2304, 4, 512), 1, (16, 3, 28, 28), 64),
    Config("cogvideox", "CogVideoX, 4 of 512", "cogvideox", _COGVIDEOX, _cogvideox(8, 4, 28, 28, 9, 512), 1, (3, 16, 28, 28), 64),  # noqa: E501
    Config("hunyuan", "HunyuanVideo, 2+4 of 512", "hunyuan", _HUNYUAN, _hunyuan(4, 2, 4, 512, 256), 1, (16, 3, 24, 24), 64),  # noqa: E501
)  # fmt: skip


def configs(device: str) -> dict[str, Config]:
    """The denoisers for a device, by name."""
    return {config.name: config for config in (TRUE_SIZE if device == "cuda" else SCALED_DOWN)}


def shortened(config: Config, share: float) -> Config:
    """The denoiser with this share of its layers, at its own width and number of tokens; its title says so."""
    counts = {name: config.arguments[name] for name in ("num_layers", "num_single_layers") if name in config.arguments}
    fewer = {name: max(1, round(share * count)) for name, count in counts.items()}
    told = f"{'+'.join(map(str, fewer.values()))} of {'+'.join(map(str, counts.values()))} layers"
    return replace(config, title=f"{config.title} ({told})", arguments={**config.arguments, **fewer})
