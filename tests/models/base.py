"""What a tiny denoiser is in these tests: how it is made, how it is called, which residual modules it has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

HEADS, HEAD_DIM = 2, 16
WIDTH = HEADS * HEAD_DIM
TEXT_TOKENS, TEXT_WIDTH, POOLED_WIDTH = 6, 24, 20

Case = tuple[nn.Module, dict[str, Any]]
Tree = Mapping[str, Mapping[str, str | tuple[str, ...]]]


@dataclass(frozen=True)
class Denoiser:
    name: str
    make: Callable[[], Case]
    tree: Tree
    sample: tuple[str, ...] = ("hidden_states",)
    time: tuple[str, ...] = ("timestep",)
    note: str = ""
    breaks: str = ""

    def build(self) -> Case:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, inputs = self.make()
            model = model.eval().float()
            for parameter in model.parameters():
                if parameter.is_floating_point() and not parameter.detach().any():
                    nn.init.normal_(parameter, std=0.05)
        return model, inputs


DENOISERS: dict[str, Denoiser] = {}


def denoiser(name: str, tree: Tree, **settings: Any) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    def register(make: Callable[[], Case]) -> Callable[[], Case]:
        DENOISERS[name] = Denoiser(name, make, tree, **settings)
        return make

    return register


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape)


def steps(batch: int) -> Tensor:
    return torch.full((batch,), 900, dtype=torch.int64)


def unit(batch: int) -> Tensor:
    return torch.full((batch,), 0.9)


def grid(frames: int, rows: int, columns: int) -> Tensor:
    return torch.cartesian_prod(torch.arange(frames), torch.arange(rows), torch.arange(columns))


def labels(batch: int) -> Tensor:
    return torch.randint(10, (batch,))


def text(batch: int, width: int = TEXT_WIDTH) -> dict[str, Any]:
    return {"encoder_hidden_states": noise(batch, TEXT_TOKENS, width)}
