"""Tiny denoisers at many sizes: batch, resolution and length of text, as pipelines vary them between generations."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from families import FAMILIES, POOLED_WIDTH, TEXT_WIDTH
from models.catalogue import DENOISERS
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """The size of one generation.

    Attributes:
        batch: Samples.
        rows: Height of the latents; the width is 8.
        text: Tokens of the prompt.
    """

    batch: int = 2
    rows: int = 8
    text: int = 6


FIRST = Size()
TEXTS = tuple(replace(FIRST, text=tokens) for tokens in (6, 7, 9, 11, 5, 13, 4, 16, 10, 21))
RESOLUTIONS = tuple(replace(FIRST, rows=rows) for rows in (8, 12, 4, 16, 20, 24))
BATCHES = tuple(replace(FIRST, batch=batch) for batch in (2, 3, 4, 5, 6, 7, 8, 1))


@dataclass(frozen=True)
class SizedModel:
    """A denoiser, and its call of any size.

    Attributes:
        build: Makes the model.
        call: Makes the inputs of a call, from noise (a function of a shape), the noise level and a size.
        kinds: What of its size can vary: ``text``, ``resolution``, ``batch``.
    """

    build: Callable[[], nn.Module]
    call: Callable[[Callable[..., Tensor], float, Size], dict[str, Any]]
    kinds: tuple[str, ...]

    def calls(self, size: Size, steps: int) -> list[dict[str, Any]]:
        """Inputs of all calls of one generation; text and other conditions stay as they are."""

        def noise_at(step: int) -> Callable[..., Tensor]:
            drawn = torch.Generator().manual_seed(size.batch + 10 * size.rows + 1000 * size.text)

            def noise(*shape: int, moves: bool = False) -> Tensor:
                start, change = torch.randn(2, *shape, generator=drawn)
                return start + change * step / steps if moves else start

            return noise

        return [self.call(noise_at(step), 1 - step / steps, size) for step in range(steps)]


def _family(name: str, call: Callable[..., dict[str, Any]], *kinds: str) -> SizedModel:
    return SizedModel(FAMILIES[name].build, call, kinds)


def _of_catalogue(name: str, call: Callable[..., dict[str, Any]], *kinds: str) -> SizedModel:
    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = DENOISERS[name].make()[0].eval()
            for parameter in model.parameters():
                if not parameter.isfinite().all() or not parameter.any():
                    nn.init.normal_(parameter, std=0.05)
        return model

    return SizedModel(build, call, kinds)


def _text(noise: Callable[..., Tensor], size: Size) -> dict[str, Tensor]:
    return {"encoder_hidden_states": noise(size.batch, size.text, TEXT_WIDTH)}


def _dit(noise: Callable[..., Tensor], level: float, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": noise(size.batch, 4, size.rows, 8, moves=True),
        "timestep": torch.full((size.batch,), round(999 * level)),
        "class_labels": torch.arange(size.batch),
    }


def _pixart(noise: Callable[..., Tensor], level: float, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": noise(size.batch, 4, size.rows, 8, moves=True),
        "timestep": torch.full((size.batch,), round(999 * level)),
        **_text(noise, size),
        "encoder_attention_mask": torch.ones(size.batch, size.text),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _sd3(noise: Callable[..., Tensor], level: float, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": noise(size.batch, 4, size.rows // 2, 8, moves=True),  # its table of positions is 8 x 8
        "timestep": torch.full((size.batch,), 1000 * level),
        **_text(noise, size),
        "pooled_projections": noise(size.batch, POOLED_WIDTH),
    }


def _flux(noise: Callable[..., Tensor], level: float, size: Size) -> dict[str, Any]:
    tokens = size.rows * 2
    places = torch.stack([torch.zeros(tokens), torch.arange(tokens) // 4, torch.arange(tokens) % 4], dim=-1)
    return {
        "hidden_states": noise(size.batch, tokens, 8, moves=True),
        "timestep": torch.full((size.batch,), level),
        **_text(noise, size),
        "pooled_projections": noise(size.batch, POOLED_WIDTH),
        "img_ids": places,
        "txt_ids": torch.zeros(size.text, 3),
        "guidance": torch.full((size.batch,), 3.5),
    }


def _wan(noise: Callable[..., Tensor], level: float, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": noise(size.batch, 4, 3, size.rows, 8, moves=True),
        "timestep": torch.full((size.batch,), round(999 * level)),
        **_text(noise, size),
    }


def _qwen(noise: Callable[..., Tensor], level: float, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": noise(size.batch, size.rows * 2, 8, moves=True),
        "timestep": torch.full((size.batch,), level),
        **_text(noise, size),
        "encoder_hidden_states_mask": torch.ones(size.batch, size.text, dtype=torch.int64),
        "img_shapes": [(1, size.rows // 2, 4)] * size.batch,
    }


def _zimage(noise: Callable[..., Tensor], level: float, size: Size) -> dict[str, Any]:
    return {
        "x": [noise(4, 1, size.rows, 8, moves=True) for _ in range(size.batch)],
        "t": torch.full((size.batch,), level),
        "cap_feats": [noise(size.text, TEXT_WIDTH) for _ in range(size.batch)],
    }


SIZED = {
    "dit": _family("dit", _dit, "batch"),
    "pixart": _family("pixart", _pixart, "text", "resolution", "batch"),
    "sd3": _family("sd3", _sd3, "text", "resolution", "batch"),
    "flux": _family("flux", _flux, "text", "resolution", "batch"),
    "wan": _family("wan", _wan, "text", "resolution", "batch"),
    "qwenimage": _of_catalogue("QwenImageTransformer2DModel", _qwen, "text", "resolution", "batch"),
    "zimage": _of_catalogue("ZImageTransformer2DModel", _zimage, "text", "resolution", "batch"),
}
VARIED = {"text": TEXTS, "resolution": RESOLUTIONS, "batch": BATCHES}
