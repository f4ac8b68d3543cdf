"""Denoisers with side information: inputs that a generation does not change, and work on them alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, TOKENS, TEXT = 16, 9, 5


class Cross(nn.Module):
    """Reads a text by cross-attention, and side information of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out, self.side = nn.Linear(WIDTH, WIDTH), nn.Linear(3, 2 * WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, h: Tensor, text: Tensor, mask: Tensor, side: Tensor) -> Tensor:
        seen = F.scaled_dot_product_attention(self.q(h), self.k(text), self.v(text), attn_mask=mask)
        h = h + self.out(seen)
        return h + self.fc2(F.gelu(self.fc1(h) + self.side(side)))


class SideDenoiser(nn.Module):
    """The first blocks read text and side information, as text-to-image models and models of time series do."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.embed, self.time, self.head = nn.Linear(4, WIDTH), nn.Linear(1, WIDTH), nn.Linear(WIDTH, 4)
        self.caption = nn.Linear(7, WIDTH)
        self.blocks = nn.ModuleList(Cross() for _ in range(blocks))

    def forward(self, x: Tensor, t: Tensor, text: Tensor, mask: Tensor, side: Tensor) -> Tensor:
        h = self.embed(x) + self.time(t[:, None])[:, None]
        text, mask = self.caption(text), mask[:, None]
        for block in self.blocks:
            h = block(h, text, mask, side)
        return self.head(h)


def side_denoiser(make: Callable[[], nn.Module] = SideDenoiser) -> nn.Module:
    """A denoiser with random weights, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval().requires_grad_(False)


def side_inputs(seed: int = 0) -> dict[str, Tensor]:
    """Text, its mask and side information, with the last token of the text masked."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(2, TEXT, dtype=torch.bool)
    mask[:, -1] = False
    return {
        "text": torch.randn(2, TEXT, 7, generator=generator),
        "mask": mask,
        "side": torch.randn(2, TOKENS, 3, generator=generator),
    }


def step_inputs(step: int, steps: int, seed: int = 0) -> dict[str, Any]:
    """Latents and timestep of one step."""
    start, direction = torch.randn(2, 2, TOKENS, 4, generator=torch.Generator().manual_seed(seed))
    return {"x": start + direction * step / steps, "t": torch.full((2,), 1 - step / steps)}
