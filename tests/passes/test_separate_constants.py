"""Constants taken out of the blocks: the graphs before and after."""

import torch
from golden import golden, text
from torch import Tensor, nn
from toys import seeded
from tracing import trace

from soda_compile.compiler.analyse import analyse
from soda_compile.compiler.constants import separate_constants


class Block(nn.Module):
    """Adds a projection of side information inside its branch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.side = nn.Linear(4, 16), nn.Linear(16, 4), nn.Linear(3, 16)

    def forward(self, h: Tensor, side: Tensor) -> Tensor:
        return h + self.fc2((self.fc1(h) + self.side(side.sigmoid()).relu()).relu())


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time, self.blocks = nn.Linear(1, 4), nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor, timestep: Tensor, side: Tensor) -> Tensor:
        x = x + self.time(timestep[:, None])[:, None]
        for block in self.blocks:
            x = block(x, side)
        return x


def test_golden():
    inputs = {"x": torch.randn(2, 5, 4), "timestep": torch.ones(2), "side": torch.randn(2, 5, 3)}
    before = analyse(trace(seeded(Denoiser()), **inputs))
    split = separate_constants(before)
    assert split is not None
    constants, remainder = split
    assert [call.name for call in constants.calls] == ["blocks.0 (constant)", "blocks.1 (constant)"]
    assert remainder.inputs == (*before.inputs, *constants.outputs)
    assert constants.calls[0].block is constants.calls[1].block
    assert text(constants.calls[1].block.module.graph) == golden("""
        %side: f32[2, 5, 3] = input
        %p_blocks_0_side_weight: f32[16, 3] = input
        %p_blocks_0_side_bias: f32[16] = input
        %sigmoid: f32[2, 5, 3] = sigmoid(%side)
        %linear_2: f32[2, 5, 16] = linear(%sigmoid, %p_blocks_0_side_weight, %p_blocks_0_side_bias)
        return (%linear_2)
    """)
    assert text(remainder.calls[-1].block.module.graph) == golden("""
        %add: f32[2, 5, 4] = input
        %p_blocks_0_fc1_weight: f32[16, 4] = input
        %p_blocks_0_fc1_bias: f32[16] = input
        %p_blocks_0_fc2_weight: f32[4, 16] = input
        %p_blocks_0_fc2_bias: f32[4] = input
        %linear_2_value: f32[2, 5, 16] = input
        %linear_1: f32[2, 5, 16] = linear(%add, %p_blocks_0_fc1_weight, %p_blocks_0_fc1_bias)
        %relu: f32[2, 5, 16] = relu(%linear_2_value)
        %add_1: f32[2, 5, 16] = add(%linear_1, %relu)
        %relu_1: f32[2, 5, 16] = relu(%add_1)
        %linear_3: f32[2, 5, 4] = linear(%relu_1, %p_blocks_0_fc2_weight, %p_blocks_0_fc2_bias)
        %add_2: f32[2, 5, 4] = add(%add, %linear_3)
        return (%add_2)
    """)
