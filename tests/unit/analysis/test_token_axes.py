"""The stream that each cut is added to, in small blocks and in the model families."""

import pytest
import torch
from families import structure_of
from thorough import gated
from torch import Tensor, nn
from tracing import trace

from soda_compile.analysis.regions import find_regions
from soda_compile.analysis.token_axes import carries_of, carry_of_cut, token_axis

H = torch.randn(2, 5, 4)
attend = nn.functional.scaled_dot_product_attention


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)


class Plain(Block):
    def forward(self, h: Tensor) -> Tensor:
        return h + self.first(h)


class Wide(Block):
    def forward(self, h: Tensor) -> Tensor:
        return (h.double() + self.first(h).double()).to(h.dtype)


class Joint(Block):
    def forward(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        seen = attend(*[torch.cat([c, h], dim=1)] * 3)
        return h + self.first(seen[:, 3:]), c + self.second(seen[:, :3])


class Shared(Block):
    """Two branches of one attention, added one after the other to the same stream."""

    def forward(self, h: Tensor) -> Tensor:
        seen = attend(h, h, h)
        return (h + self.first(seen)) + self.second(seen)


class Sequence(Block):
    """One cut for both parts of a sequence, each of which is a stream of its own."""

    def forward(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        tokens = torch.cat([c, h], dim=1)
        out = self.first(attend(tokens, tokens, tokens))
        return h + out[:, 3:], c + out[:, :3]


class Channels(nn.Module):
    """A convolution over tokens: axis 1 holds its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(5, 5, 1)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.conv(h)


C = torch.randn(2, 3, 4)


@pytest.mark.parametrize(
    ("model", "inputs", "expected"),
    [
        (Plain(), (H,), ["h"]),
        (Wide(), (H,), ["h"]),
        (Joint(), (H, C), ["h", "c"]),
        (Shared(), (H,), ["h", "h"]),
        (Sequence(), (H, C), [None]),
        (Plain(), (H[0],), [None]),
        (Channels(), (H,), [None]),
    ],
    ids=["plain", "cast", "joint", "added in turn", "one cut for two streams", "no batch", "channels first"],
)
def test_the_carry_of_each_cut(model: nn.Module, inputs: tuple[Tensor, ...], expected: list[str | None]):
    graph = trace(model, *inputs).graph
    (region,) = find_regions(graph)[0]
    found = [carry_of_cut(graph, region, cut) for cut in range(len(region.cuts))]
    assert sorted(str(node) for node in found) == sorted(map(str, expected))
    for cut, carry in zip(region.cuts, found, strict=True):
        assert carry is None or carry.meta["val"].shape[:2] == cut.shape[:2]
    assert (carries_of(graph, region) is None) == (None in expected)


@pytest.mark.parametrize("name", gated("flux", others=["sd3", "cogvideox"]))
def test_every_region_of_joint_attention_has_carries(name: str):
    """CogVideoX has one cut for text and video, which are streams of their own: they are joined for it."""
    structure = structure_of(name)
    for block in {call.block.key: call.block for call in structure.calls}.values():
        for region in block.regions:
            carries = carries_of(block.module.graph, region)
            assert carries is not None, region.name
            assert [carry.meta["val"].shape[:2] for carry in carries] == [cut.shape[:2] for cut in region.cuts]


def test_only_values_of_three_axes_have_tokens():
    assert token_axis((2, 5, 4)) == 1
    assert [token_axis(shape) for shape in [(5, 4), (2, 5, 4, 4), ()]] == [None, None, None]
