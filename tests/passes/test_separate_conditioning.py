"""Conditioning taken out of the blocks: the graphs before and after, and what they give."""

import torch
from golden import golden, text
from torch import Tensor, nn
from toys import seeded
from tracing import trace

from soda_compile.compiler.analyse import analyse
from soda_compile.compiler.conditioning import separate_conditioning
from soda_compile.ir.structure import Structure


class Block(nn.Module):
    """Modulated by a vector for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Linear(4, 8)
        self.fc1 = nn.Linear(4, 16)
        self.fc2 = nn.Linear(16, 4)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, gate = self.modulation(c.sigmoid())[:, None].chunk(2, dim=-1)
        return h + gate * self.fc2(self.fc1(h * (1 + scale)).relu())


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 4)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        c = self.embed(timestep[:, None])
        for block in self.blocks:
            x = block(x, c)
        return x


STAYS = "\n" + golden("""
    %split: (f32[2, 1, 4], f32[2, 1, 4]) = split(%unsqueeze_1, 4, -1)
    %getitem_1: f32[2, 1, 4] = getitem(%split, 1)
    %getitem: f32[2, 1, 4] = getitem(%split, 0)
    %add: f32[2, 1, 4] = add(%getitem, 1)
    %mul: f32[2, 3, 4] = mul(%x, %add)
    %linear_2: f32[2, 3, 16] = linear(%mul, %p_blocks_0_fc1_weight, %p_blocks_0_fc1_bias)
    %relu: f32[2, 3, 16] = relu(%linear_2)
    %linear_3: f32[2, 3, 4] = linear(%relu, %p_blocks_0_fc2_weight, %p_blocks_0_fc2_bias)
    %mul_1: f32[2, 3, 4] = mul(%getitem_1, %linear_3)
    %add_1: f32[2, 3, 4] = add(%x, %mul_1)
    return (%add_1)
""")
"""What both the block and its rest end with."""


def structure_of(model: nn.Module) -> Structure:
    return analyse(trace(model, torch.randn(2, 3, 4), timestep=torch.ones(2)))


def separated(structure: Structure) -> tuple[Structure, Structure]:
    split = separate_conditioning(structure)
    assert split is not None
    return split


def written(structure: Structure) -> list[str]:
    return [f"{', '.join(call.outputs)} = {call.name}" for call in structure.calls if call.outputs]


def test_golden():
    before = structure_of(seeded(Denoiser()))
    conditioning, remainder = separated(before)
    assert written(conditioning) == [
        "linear = (head) (conditioning)",
        "blocks.0/linear_1 = blocks.0 (conditioning)",
        "blocks.1/linear_1 = blocks.1 (conditioning)",
    ]
    assert written(remainder) == ["add_1 = blocks.0", "add_3 = blocks.1"]
    assert conditioning.outputs == ("blocks.0/linear_1", "blocks.1/linear_1")
    assert conditioning.inputs == before.inputs
    assert remainder.inputs == (*before.inputs, *conditioning.outputs)
    assert remainder.parameters == (*before.parameters, False, False)
    assert (
        text(before.calls[1].block.module.graph)
        == golden("""
        %linear: f32[2, 4] = input
        %p_blocks_0_modulation_weight: f32[8, 4] = input
        %p_blocks_0_modulation_bias: f32[8] = input
        %x: f32[2, 3, 4] = input
        %p_blocks_0_fc1_weight: f32[16, 4] = input
        %p_blocks_0_fc1_bias: f32[16] = input
        %p_blocks_0_fc2_weight: f32[4, 16] = input
        %p_blocks_0_fc2_bias: f32[4] = input
        %sigmoid: f32[2, 4] = sigmoid(%linear)
        %linear_1: f32[2, 8] = linear(%sigmoid, %p_blocks_0_modulation_weight, %p_blocks_0_modulation_bias)
        %unsqueeze_1: f32[2, 1, 8] = unsqueeze(%linear_1, 1)
    """)
        + STAYS
    )
    assert text(conditioning.calls[1].block.module.graph) == golden("""
        %linear: f32[2, 4] = input
        %p_blocks_0_modulation_weight: f32[8, 4] = input
        %p_blocks_0_modulation_bias: f32[8] = input
        %sigmoid: f32[2, 4] = sigmoid(%linear)
        %linear_1: f32[2, 8] = linear(%sigmoid, %p_blocks_0_modulation_weight, %p_blocks_0_modulation_bias)
        return (%linear_1)
    """)
    assert (
        text(remainder.calls[1].block.module.graph)
        == golden("""
        %x: f32[2, 3, 4] = input
        %p_blocks_0_fc1_weight: f32[16, 4] = input
        %p_blocks_0_fc1_bias: f32[16] = input
        %p_blocks_0_fc2_weight: f32[4, 16] = input
        %p_blocks_0_fc2_bias: f32[4] = input
        %linear_1_value: f32[2, 8] = input
        %unsqueeze_1: f32[2, 1, 8] = unsqueeze(%linear_1_value, 1)
    """)
        + STAYS
    )


def test_equal_blocks_still_share_their_parts():
    conditioning, remainder = separated(structure_of(seeded(Denoiser())))
    first, second = conditioning.calls[1:3]
    assert first.block is second.block
    assert remainder.calls[1].block is remainder.calls[2].block


def test_the_calls_give_what_the_model_gives():
    model = seeded(Denoiser())
    conditioning, remainder = separated(structure_of(model))
    inputs = {"x": torch.randn(2, 3, 4), "timestep": torch.tensor([3.0, 5.0])}
    parameters = dict(model.named_parameters())
    values = {
        name: parameters[path] if owned else inputs[path]
        for name, path, owned in zip(conditioning.inputs, conditioning.paths, conditioning.parameters, strict=True)
    }
    with torch.no_grad():
        for call in (*conditioning.calls, *remainder.calls):
            values |= zip(call.outputs, call.block.module(*[values[name] for name in call.inputs]), strict=True)
        (name,) = remainder.outputs
        assert name is not None
        assert torch.equal(values[name], model(**inputs))
