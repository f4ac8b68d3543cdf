"""Denoisers that are no diffusers models, written by hand in the styles that people write them in."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, TOKENS = 16, 2, 9
REGIONS = tuple(f"blocks.{block}.{part}" for block in range(3) for part in ("attn", "mlp"))  # of Listed


class Attention(nn.Module):
    """As in timm: queries, keys and values from one projection."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 2 * WIDTH)
        self.fc2 = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Scale(nn.Module):
    """timm's LayerScale."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((WIDTH,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class TimmBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp = Attention(), Mlp()
        self.ls1, self.ls2 = Scale(), Scale()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class InPlaceBlock(TimmBlock):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x += self.attn(self.norm1(x))
        x.add_(self.mlp(self.norm2(x)))
        return x


class DitBlock(TimmBlock):
    """As in facebookresearch/DiT: adaLN-Zero with a modulation of its own in each block."""

    def __init__(self) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))


class SerialBlock(TimmBlock):
    """The gate and the residual add are one fused operation."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addcmul(x, self.ls1.gamma, self.attn(self.norm1(x)))
        return torch.addcmul(x, self.ls2.gamma, self.mlp(self.norm2(x)))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class Denoiser(nn.Module):
    """Embeds sample and time, runs ``body``, projects back."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.time, self.head = nn.Linear(4, WIDTH), nn.Linear(1, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c = self.time(t[:, None])
        return self.head(self.body(self.embed(x) + c[:, None], c))

    def body(self, h: Tensor, c: Tensor) -> Tensor:
        raise NotImplementedError


class Listed(Denoiser):
    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(3))

    def body(self, h: Tensor, c: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h, c) if isinstance(block, DitBlock) else block(h)
        return h


class Attributes(Denoiser):
    """Blocks that are in no list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = TimmBlock(), TimmBlock(), TimmBlock()

    def body(self, h: Tensor, c: Tensor) -> Tensor:
        return self.third(self.second(self.first(h)))


class InSequential(Denoiser):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(*(TimmBlock() for _ in range(3)))

    def body(self, h: Tensor, c: Tensor) -> Tensor:
        return self.net(h)


class ParentAdds(Denoiser):
    """Norms and residual adds in the parent's forward, around the elements of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.layers = nn.ModuleList(Mlp() for _ in range(3))

    def body(self, h: Tensor, c: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            h = h + layer(norm(h))
        return h


class TwoLists(Denoiser):
    """Two lists of equal blocks whose parts have other names."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.ModuleList(TimmBlock() for _ in range(2))
        self.temporal = nn.ModuleList(Renamed() for _ in range(2))

    def body(self, h: Tensor, c: Tensor) -> Tensor:
        for spatial, temporal in zip(self.spatial, self.temporal, strict=True):
            h = temporal(spatial(h))
        return h


class Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mixing, self.feeding = Attention(), Mlp()
        self.scale1, self.scale2 = Scale(), Scale()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1(self.mixing(self.before(x)))
        return x + self.scale2(self.feeding(self.after(x)))


class Breaks(Listed):
    """Reads on the host how many of its tokens count."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale = 2.0 if t.sum() > 1e6 else 1.0
        return super().forward(x * scale, t)


def inputs(step: int = 0, steps: int = 5) -> dict[str, Tensor]:
    """Inputs of one call of a ``Denoiser``."""
    generator = torch.Generator().manual_seed(1)
    start, direction = torch.randn(2, 2, TOKENS, 4, generator=generator)
    return {"x": start + direction * step / steps, "t": torch.full((2,), 1 - step / steps)}
