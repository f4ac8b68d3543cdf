"""A small diffusion transformer in plain PyTorch: no library, fused queries, keys and values, blocks in a list."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Self-attention and MLP, both modulated and gated by the time."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)

    def attend(self, x: Tensor) -> Tensor:
        """Attention over the tokens of ``x`` [batch, tokens, width]."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Updates ``x`` [batch, tokens, width] given the time ``c`` [batch, width]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(c))[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attend(self.norm(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm(x) * (1 + scale2) + shift2)


class Denoiser(nn.Module):
    """Maps noisy tokens [batch, tokens, channels] and a time [batch] in [0, 1] to a prediction of the tokens' shape."""

    def __init__(self, channels: int, tokens: int, width: int = 64, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(channels, width), nn.Linear(width, channels)
        self.positions = nn.Parameter(torch.randn(tokens, width) / width**0.5)
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The prediction for ``x`` at time ``t``."""
        h, c = self.embed(x) + self.positions, self.time(t[:, None])
        for block in self.blocks:
            h = block(h, c)
        return self.head(h)
