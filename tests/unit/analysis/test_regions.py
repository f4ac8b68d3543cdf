"""Residual branches of hand-written blocks: what is found, where it is cut, and why the rest is left alone."""

import torch
from torch import Tensor, nn
from tracing import regions_of, trace

import soda_compile
from soda_compile.analysis.regions import find_regions
from soda_compile.ir.graphs import find_node
from soda_compile.ir.structure import Region

WIDTH = 8
H, C, VECTOR = torch.randn(2, 5, WIDTH), torch.randn(2, 3, WIDTH), torch.randn(2, WIDTH)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key_value = nn.Linear(WIDTH, 2 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor, c: Tensor | None = None) -> Tensor:
        key, value = self.key_value(h if c is None else c).chunk(2, dim=-1)
        return self.out(nn.functional.scaled_dot_product_attention(self.query(h), key, value))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(h)))


class Base(nn.Module):
    """What the blocks below are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.attn2, self.mlp = Attention(), Attention(), Mlp()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)


def summary(regions: tuple[Region, ...]) -> list[tuple[str, str, int]]:
    """Name, kind and number of cuts."""
    return [(region.name, region.kind, len(region.cuts)) for region in regions]


ATTENTION_AND_MLP = [("attn", "attention", 1), ("mlp", "mlp", 1)]


class PreNorm(Base):
    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attn(self.norm1(h))
        return h + self.mlp(self.norm2(h))


def test_pre_norm():
    (attn, mlp), notes = regions_of(PreNorm(), H)
    assert summary((attn, mlp)) == ATTENTION_AND_MLP
    assert notes == ()
    assert attn.carries == ("h",)
    assert [cut.shape for cut in (*attn.cuts, *mlp.cuts)] == [(2, 5, WIDTH)] * 2
    assert attn.weights == ((16, 8), (8, 8), (8, 8))
    assert mlp.weights == ((32, 8), (8, 32))
    assert mlp.flops == 2 * (2 * 10 * 8 * 32)
    assert attn.flops == 2 * 10 * 8 * (8 + 16 + 8) + 2 * (2 * 10 * 5 * 8)
    assert attn.memory_bytes == 2 * 5 * 8 * 4


class Gated(Base):
    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, dim=-1)
        h = h + gate1 * self.attn(self.norm1(h) * (1 + scale1) + shift1)
        return h + gate2 * self.mlp(self.norm2(h) * (1 + scale2) + shift2)


def test_gated_modulation_stays_outside_the_cuts():
    captured = trace(Gated(), H, VECTOR)
    regions, notes = find_regions(captured.graph)
    assert summary(regions) == ATTENTION_AND_MLP
    for region in regions:
        cut = find_node(captured.graph, region.cuts[0].node)
        assert cut.target is torch.ops.aten.linear.default, "the cut lies before the gate"
        assert find_node(captured.graph, region.branches[0]).target is torch.ops.aten.mul.Tensor
    (note,) = notes
    assert "modulation" in note.subject
    assert note.reason == "conditioning: it does not depend on the residual stream"


class Parallel(Base):
    def forward(self, h: Tensor) -> Tensor:
        normed = self.norm1(h)
        return h + self.attn(normed) + self.mlp(normed)


def test_parallel_branches_are_two_regions_and_the_shared_norm_belongs_to_neither():
    regions, notes = regions_of(Parallel(), H)
    assert summary(regions) == ATTENTION_AND_MLP
    assert notes == ()


class ParallelSum(Base):
    def forward(self, h: Tensor) -> Tensor:
        normed = self.norm1(h)
        return h + (self.attn(normed) + self.mlp(normed))


def test_branches_that_are_summed_before_the_add_are_one_region_with_one_cut():
    regions, _ = regions_of(ParallelSum(), H)
    assert [(region.kind, len(region.cuts), region.branches) for region in regions] == [
        ("attention+mlp", 1, (regions[0].cuts[0].node,))
    ]


class DualAttention(Base):
    """Stable Diffusion 3.5: the second attention reads the block's input and is added after the first."""

    def forward(self, h: Tensor) -> Tensor:
        first, second = self.norm1(h), self.norm2(h)
        h = h + self.attn(first)
        h = h + self.attn2(second)
        return h + self.mlp(h)


def test_dual_attention():
    regions, _ = regions_of(DualAttention(), H)
    assert summary(regions) == [("attn", "attention", 1), ("attn2", "attention", 1), ("mlp", "mlp", 1)]


class Cross(Base):
    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        h = h + self.attn(self.norm1(h))
        h = h + self.attn2(h, c)
        return h + self.mlp(self.norm2(h))


def test_cross_attention_takes_the_keys_of_the_text_along():
    regions, notes = regions_of(Cross(), H, C)
    assert summary(regions) == [("attn", "attention", 1), ("attn2", "attention", 1), ("mlp", "mlp", 1)]
    assert notes == ()
    assert regions[1].weights == ((16, 8), (8, 8), (8, 8))


class JointAttention(nn.Module):
    """Both streams attend together; each has projections of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = (nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.image_out, self.text_out = (nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = torch.cat([self.image(h), self.text(c)], dim=1).chunk(3, dim=-1)
        seen = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.image_out(seen[:, : h.shape[1]]), self.text_out(seen[:, h.shape[1] :])


class Joint(Base):
    def __init__(self) -> None:
        super().__init__()
        self.attn = JointAttention()
        self.mlp_context = Mlp()

    def forward(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        image, text = self.attn(self.norm1(h), self.norm2(c))
        h, c = h + image, c + text
        return h + self.mlp(h), c + self.mlp_context(c)


def test_joint_attention_is_one_region_with_a_cut_for_each_stream():
    regions, notes = regions_of(Joint(), H, C)
    assert summary(regions) == [("attn", "attention", 2), ("mlp", "mlp", 1), ("mlp_context", "mlp", 1)]
    assert sorted(cut.shape for cut in regions[0].cuts) == [(2, 3, WIDTH), (2, 5, WIDTH)]
    assert regions[0].carries == ("h", "c")
    assert regions[0].weights == ((24, 8), (24, 8), (8, 8), (8, 8))
    assert notes == ()


class PostNorm(Base):
    def forward(self, h: Tensor) -> Tensor:
        h = self.norm1(h + self.attn(h))
        return self.norm2(h + self.mlp(h))


def test_post_norm():
    regions, notes = regions_of(PostNorm(), H)
    assert summary(regions) == ATTENTION_AND_MLP
    assert notes == ()


class Sandwich(Base):
    def __init__(self) -> None:
        super().__init__()
        self.after = nn.LayerNorm(WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.after(self.mlp(self.norm1(h)))


def test_a_norm_after_the_module_lies_behind_the_cut():
    captured = trace(Sandwich(), H)
    regions, _ = find_regions(captured.graph)
    assert summary(regions) == [("mlp", "mlp", 1)]
    assert find_node(captured.graph, regions[0].cuts[0].node).target is torch.ops.aten.linear.default
    assert "layer_norm" in regions[0].branches[0]


class WideAdd(Base):
    """Wan: the stream is cast to float32 for the add."""

    def forward(self, h: Tensor, gate: Tensor) -> Tensor:
        h = (h.float() + self.attn(self.norm1(h)).float() * gate).type_as(h)
        return (h.float() + self.mlp(self.norm2(h)).float() * gate).type_as(h)


def test_a_carry_behind_a_cast_is_seen_and_the_narrow_tensor_is_stored():
    regions, notes = regions_of(WideAdd().bfloat16(), H.bfloat16(), VECTOR[:, None])
    assert summary(regions) == ATTENTION_AND_MLP
    assert notes == ()
    assert [region.cuts[0].dtype for region in regions] == [torch.bfloat16] * 2


class InPlace(Base):
    def forward(self, h: Tensor) -> Tensor:
        h = h.clone()
        h += self.attn(self.norm1(h))
        h += self.mlp(self.norm2(h))
        return h


def test_a_residual_in_place():
    regions, notes = regions_of(InPlace(), H)
    assert summary(regions) == ATTENTION_AND_MLP
    assert notes == ()


class PerTokenModulation(Base):
    """Scale and shift of each token come from one linear of the stream: the shift has the stream's shape."""

    def forward(self, h: Tensor) -> Tensor:
        shift, scale, *_ = self.modulation(h).chunk(6, dim=-1)
        return self.norm1(h) * (1 + scale) + shift


def test_a_shift_of_full_shape_is_no_residual():
    regions, notes = regions_of(PerTokenModulation(), H)
    assert regions == ()
    assert [note.reason for note in notes] == ["no residual add follows it here"]


class PerTokenConditioning(Base):
    """A modulation [B, N, 6D] of a separate per-token conditioning, then a module."""

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate, *_ = self.modulation(c).chunk(6, dim=-1)
        return h + gate * self.mlp(self.norm1(h) * (1 + scale) + shift)


def test_conditioning_of_full_shape_is_no_residual():
    regions, notes = regions_of(PerTokenConditioning(), H, torch.randn_like(H))
    assert summary(regions) == [("mlp", "mlp", 1)]
    assert regions[0].weights == ((32, 8), (8, 32))
    assert [note.reason for note in notes] == ["conditioning: it does not depend on the residual stream"]


class ModulatedSandwich(Base):
    """The shift behind the module is a chunk of the tensor that modulates in front of it."""

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, shift2, scale2, *_ = self.modulation(c).chunk(6, dim=-1)
        inside = self.mlp(self.norm1(h) * (1 + scale1) + shift1)
        return h + (self.norm2(inside) * (1 + scale2) + shift2)


def test_a_shift_of_full_shape_behind_a_module_is_no_residual():
    regions, _ = regions_of(ModulatedSandwich(), H, torch.randn_like(H))
    assert summary(regions) == [("mlp", "mlp", 1)]
    assert regions[0].carries == ("h",)


class Inner(Base):
    def forward(self, h: Tensor) -> Tensor:
        h = self.modulation(h)[..., :WIDTH]
        return h + self.mlp(h)


class Outer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.out(self.inner(self.norm1(h)))


def test_a_residual_inside_a_branch_is_a_region_of_its_own():
    regions, _ = regions_of(Outer(), H)
    assert [region.kind for region in regions] == ["mlp", "mlp"]
    inner, outer = sorted(regions, key=lambda region: region.name != "inner.mlp")
    assert inner.name == "inner.mlp"
    assert inner.weights == ((32, 8), (8, 32))
    assert set(inner.weights) < set(outer.weights), "the inner work dies with the outer branch"
    assert inner.flops == 2 * (2 * 10 * 8 * 32)
    assert outer.flops == 2 * 10 * 8 * (48 + 8), "work counts once, so that regions can be added up"


class Plain(Base):
    def forward(self, h: Tensor) -> Tensor:
        return self.mlp(h)


def test_a_block_without_residual_says_why():
    regions, notes = regions_of(Plain(), H)
    assert regions == ()
    assert [note.subject.partition(" ")[0] for note in notes] == ["mlp.fc1", "mlp.fc2"]
    assert {note.reason for note in notes} == {"no residual add follows it here"}


class OnTheStream(Base):
    def forward(self, h: Tensor) -> Tensor:
        h = h + self.mlp(h)
        return self.attn2.out(h)


def test_work_on_the_stream_itself_says_why():
    regions, notes = regions_of(OnTheStream(), H)
    assert summary(regions) == [("mlp", "mlp", 1)]
    (note,) = notes
    assert note.subject.startswith("attn2.out (aten.linear, ")
    assert note.reason.startswith("it is on the residual stream itself")


class Twice(Base):
    def forward(self, h: Tensor) -> Tensor:
        h = h + self.mlp(self.norm1(h))
        return h + self.mlp(self.norm2(h))


def test_a_module_that_runs_twice_has_two_names():
    regions, _ = regions_of(Twice(), H)
    assert [region.name for region in regions] == ["mlp", "mlp#2"]


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.conv(nn.functional.silu(h))


def test_a_convolution():
    regions, _ = regions_of(Convolutional(), torch.randn(1, 3, 6, 6))
    assert summary(regions) == [("conv", "convolution", 1)]
    assert regions[0].flops == 2 * 3 * 36 * 27


class NotResidual(nn.Module):
    """h + x W, but W does not read h."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        return h + self.linear(c)


def test_the_sum_of_two_streams_is_no_residual():
    regions, _ = regions_of(NotResidual(), H, torch.randn_like(H))
    assert regions == ()


class Stack(nn.Module):
    def __init__(self, blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, h: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h)
        return h


def test_names_have_the_block_in_front():
    structure = soda_compile.inspect(Stack(nn.ModuleList([PreNorm(), PreNorm()])), H)
    assert structure.region_names == ("blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp")
    assert len({call.block.key for call in structure.calls}) == 1


def test_a_model_without_a_list_still_has_regions():
    structure = soda_compile.inspect(PreNorm(), H)
    assert structure.region_names == ("(model).attn", "(model).mlp")
