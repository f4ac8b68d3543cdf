"""Makes a denoiser with random weights, and the inputs of its calls."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.suite.configs import Config

STD = 0.02


@dataclass(frozen=True, eq=False)
class Maker:
    """Draws inputs of one batch."""

    config: Config
    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator

    def noise(self, *shape: int) -> Tensor:
        values = torch.randn(shape, generator=self.generator, device=self.device)
        return values.to(self.dtype)

    def time(self, value: float, dtype: torch.dtype | None = None) -> Tensor:
        return torch.full((self.config.batch,), value, device=self.device).to(dtype or self.dtype)

    def text(self) -> Tensor:
        names = ("joint_attention_dim", "caption_channels", "text_dim", "text_embed_dim")
        width = next(self.config.arguments[name] for name in names if name in self.config.arguments)
        return self.noise(self.config.batch, self.config.text_tokens, width)

    def pooled(self) -> Tensor:
        return self.noise(self.config.batch, self.config.arguments["pooled_projection_dim"])


def _dit(maker: Maker) -> dict[str, Any]:
    return {"class_labels": torch.arange(maker.config.batch, device=maker.device)}


def _pixart(maker: Maker) -> dict[str, Any]:
    batch, extra = maker.config.batch, maker.config.arguments["use_additional_conditions"]
    sizes = {"resolution": (batch, 2), "aspect_ratio": (batch, 1)}
    return {
        "encoder_hidden_states": maker.text(),
        "added_cond_kwargs": {name: maker.noise(*shape).abs() if extra else None for name, shape in sizes.items()},
    }


def _flux(maker: Maker) -> dict[str, Any]:
    side = int(maker.config.sample[0] ** 0.5)
    rows, columns = torch.meshgrid(*(torch.arange(float(side), device=maker.device),) * 2, indexing="ij")
    ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
    return {
        "encoder_hidden_states": maker.text(),
        "pooled_projections": maker.pooled(),
        "img_ids": ids.to(maker.dtype),
        "txt_ids": torch.zeros(maker.config.text_tokens, 3, device=maker.device, dtype=maker.dtype),
        "guidance": torch.full((maker.config.batch,), 3.5, device=maker.device),
    }


def _sd3(maker: Maker) -> dict[str, Any]:
    return {"encoder_hidden_states": maker.text(), "pooled_projections": maker.pooled()}


def _wan(maker: Maker) -> dict[str, Any]:
    return {"encoder_hidden_states": maker.text()}


def _cogvideox(maker: Maker) -> dict[str, Any]:
    frames, _, height, width = maker.config.sample
    tokens = frames * (height // 2) * (width // 2)
    angles = torch.rand(tokens, 64, generator=maker.generator, device=maker.device)
    return {"encoder_hidden_states": maker.text(), "image_rotary_emb": (angles.cos(), angles.sin())}


def _hunyuan(maker: Maker) -> dict[str, Any]:
    shape = (maker.config.batch, maker.config.text_tokens)
    return {
        "encoder_hidden_states": maker.text(),
        "encoder_attention_mask": torch.ones(shape, device=maker.device, dtype=torch.int64),
        "pooled_projections": maker.pooled(),
        "guidance": maker.time(6000.0),
    }


INPUTS: dict[str, Callable[[Maker], dict[str, Any]]] = {
    "dit": _dit, "pixart": _pixart, "flux": _flux, "sd3": _sd3, "wan": _wan, "cogvideox": _cogvideox,
    "hunyuan": _hunyuan,
}  # fmt: skip
INTEGER_TIME = ("dit", "pixart", "wan", "cogvideox", "hunyuan")
UNIT_TIME = ("flux",)


def make_model(config: Config, device: str, dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """The denoiser in evaluation mode, with random weights drawn on the device itself.

    What the class initialises to zero (the last layers of adaLN-zero, biases) gets small random values, so that every
    block does something. Modules that the class keeps in float32 stay so.
    """
    import diffusers

    cls = getattr(diffusers, config.cls)
    before = torch.get_default_dtype()
    torch.manual_seed(seed)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model: nn.Module = cls(**config.arguments)
    finally:
        torch.set_default_dtype(before)
    model = model.eval().requires_grad_(False)
    kept = set(getattr(cls, "_keep_in_fp32_modules", None) or ())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            path, _, last = name.rpartition(".")
            cast = tensor.detach().to(torch.float32 if kept & set(name.split(".")) else dtype)
            if isinstance(tensor, nn.Parameter):
                tensor.data = cast
            else:  # a view whose base keeps its dtype cannot be traced
                setattr(model.get_submodule(path), last, cast)
        if device != "meta" and isinstance(tensor, nn.Parameter) and not tensor.any():
            nn.init.normal_(tensor, std=STD)
    return model


def make_inputs(config: Config, device: str, dtype: torch.dtype, steps: int, seed: int = 1) -> list[dict[str, Any]]:
    """Keyword inputs of each call of a trajectory: new latents and a lower timestep at every step."""
    generator = torch.Generator(device if device == "cuda" else "cpu").manual_seed(seed)
    maker = Maker(config, torch.device(device), dtype, generator)
    fixed = INPUTS[config.family](maker)
    latents = maker.noise(config.batch, *config.sample)
    calls = []
    for step in range(steps):
        level = 1 - step / steps
        latents = latents + 0.1 * maker.noise(config.batch, *config.sample)
        if config.family in INTEGER_TIME:
            time = maker.time(round(999 * level), torch.int64)
        else:
            time = maker.time(level if config.family in UNIT_TIME else 1000 * level)
        calls.append({"hidden_states": latents, "timestep": time, **fixed, "return_dict": False})
    return calls
