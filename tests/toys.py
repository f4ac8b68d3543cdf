"""Small modules that the pass tests rewrite."""

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from tracing import trace

from soda_compile.analysis.regions import find_regions
from soda_compile.ir.structure import Region


class Gated(nn.Module):
    """h + gate * linear(silu(h)): one region, whose cut is the linear; the gate stays fresh."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, bias=False)

    def forward(self, h: Tensor, gate: Tensor) -> Tensor:
        return h + gate * self.linear(nn.functional.silu(h))


class Joint(nn.Module):
    """Two streams that attend together: one region with two cuts, one of each stream."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(4, 4, bias=False)
        self.text = nn.Linear(4, 4, bias=False)

    def forward(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        tokens = torch.cat([h, c], dim=1)
        seen = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return h + self.image(seen[:, :3]), c + self.text(seen[:, 3:])


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with random weights that are the same each time."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module.eval()


def gated(dtype: torch.dtype = torch.float32) -> tuple[fx.Graph, Region]:
    """The graph of ``Gated`` for h [2, 3, 4] and gate [2, 1, 4], and its region."""
    graph = trace(Gated().to(dtype), torch.randn(2, 3, 4, dtype=dtype), torch.randn(2, 1, 4, dtype=dtype)).graph
    return graph, only(find_regions(graph)[0])


def joint() -> tuple[fx.Graph, Region]:
    """The graph of ``Joint`` for h [2, 3, 4] and c [2, 2, 4], and its region."""
    graph = trace(Joint(), torch.randn(2, 3, 4), torch.randn(2, 2, 4)).graph
    return graph, only(find_regions(graph)[0])


def only(items: Sequence[Region]) -> Region:
    """The one item there is."""
    (item,) = items
    return item
