import pytest
import torch
from golden import golden, text
from torch import Tensor, nn
from toys import Gated, Joint, gated, joint, only, seeded
from tracing import parameters_of, run, trace

from soda_compile.analysis.cut_to_branch import cut_to_branch
from soda_compile.analysis.regions import find_regions
from soda_compile.passes.dead_code import DeadCode
from soda_compile.passes.insert_reuse import InsertReuse
from soda_compile.passes.observe import Observe


class Wide(nn.Module):
    """A bfloat16 stream that is added to in float32, as in Wan, with a norm after the module."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, h: Tensor, gate: Tensor) -> Tensor:
        return (h.float() + gate * self.norm(self.linear(h).float())).to(h.dtype)


def only_linear() -> nn.Module:
    """A residual branch over values without a batch."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, h: Tensor) -> Tensor:
            return h + self.linear(h)

    return Plain()


def test_golden():
    graph, region = gated()
    result = Observe((region,)).apply(graph)
    assert (result.changed, result.skipped) == (("linear", "gate", "|h|"), ())
    assert text(graph) == golden("""
        %h: f32[2, 3, 4] = input
        %p_linear_weight: f32[4, 4] = input
        %gate: f32[2, 1, 4] = input
        %silu: f32[2, 3, 4] = silu(%h)
        %linear: f32[2, 3, 4] = linear(%silu, %p_linear_weight)
        %mul: f32[2, 3, 4] = mul(%gate, %linear)
        %add: f32[2, 3, 4] = add(%h, %mul)
        %_to_copy_default: f32[2, 3, 4] = _to_copy(%h, dtype=f32)
        %mul_tensor: f32[2, 3, 4] = mul(%_to_copy_default, %_to_copy_default)
        %sum_dim_int_list: f32[2] = sum(%mul_tensor, (1, 2))
        return (%add, %linear, %gate, %sum_dim_int_list)
    """)


def test_golden_with_carries():
    graph, region = gated()
    assert Observe((region,), carries=True).apply(graph).changed == ("linear", "gate", "h", "|h|")
    assert text(graph).splitlines()[-1].strip() == "return (%add, %linear, %gate, %h, %sum_dim_int_list)"
    graph, region = joint()
    assert Observe((region,), carries=True).apply(graph).changed == ("linear", "linear_1", "h", "c", "|h|", "|c|")


def test_no_carry_is_given_where_a_region_cannot_be_pruned():
    model = only_linear()
    graph = trace(model, torch.randn(3, 4)).graph
    region = only(find_regions(graph)[0])
    assert Observe((region,), carries=True).apply(graph).changed == Observe((region,)).apply(graph).changed


def test_golden_residual_head():
    graph, region = gated()
    head = cut_to_branch(graph, region)
    assert head.others == ("gate",)
    assert text(head.module.graph) == golden("""
        %linear: f32[2, 3, 4] = input
        %gate: f32[2, 1, 4] = input
        %mul: f32[2, 3, 4] = mul(%gate, %linear)
        return (%mul)
    """)


def test_a_head_without_gate_hands_the_cuts_through():
    graph, region = joint()
    head = cut_to_branch(graph, region)
    assert head.others == ()
    assert text(head.module.graph) == golden("""
        %linear: f32[2, 3, 4] = input
        %linear_1: f32[2, 2, 4] = input
        return (%linear, %linear_1)
    """)


def test_the_outputs_of_the_block_come_first_and_unchanged():
    graph, region = joint()
    names = Observe((region,)).apply(graph).changed
    assert names == ("linear", "linear_1", "|h|", "|c|")
    model = seeded(Joint())
    h, c = torch.randn(2, 3, 4), torch.randn(2, 2, 4)
    results = run(graph, h=h, c=c, **parameters_of(model))
    for seen, expected in zip(results, model(h, c), strict=False):
        torch.testing.assert_close(seen, expected.detach())
    seen = dict(zip(names, results[2:], strict=True))
    torch.testing.assert_close(seen["|h|"], h.square().sum((1, 2)))
    torch.testing.assert_close(seen["|c|"], c.square().sum((1, 2)))
    torch.testing.assert_close(h + seen["linear"], model(h, c)[0].detach())


def test_the_head_gives_the_branch_that_eager_adds():
    model = seeded(Wide()).to(torch.bfloat16)
    model.norm.float()
    h, gate = torch.randn(2, 3, 4).bfloat16(), torch.randn(2, 1, 4)
    graph = trace(model, h, gate).graph
    region = only(find_regions(graph)[0])
    head = cut_to_branch(graph, region)
    cut = model.linear(h).detach()
    values = {"gate": gate, **parameters_of(model)}
    (branch,) = head.module(cut, *[values[name] for name in head.others])
    torch.testing.assert_close(branch, (gate * model.norm(cut.float())).detach(), rtol=0, atol=0)


def test_sizes_of_narrow_streams_are_summed_in_float32():
    graph, region = gated(torch.bfloat16)
    names = Observe((region,)).apply(graph).changed
    h = torch.full((2, 3, 4), 1.0078125).bfloat16()
    model = seeded(Gated()).bfloat16()
    results = run(graph, h=h, gate=h[:, :1], **parameters_of(model))
    size = dict(zip(names, results[1:], strict=True))["|h|"]
    torch.testing.assert_close(size, h.float().square().sum((1, 2)), rtol=0, atol=0)


def test_a_cut_that_is_gone_is_an_error():
    graph, region = gated()
    InsertReuse(0, region).apply(graph)
    DeadCode().apply(graph)
    with pytest.raises(LookupError, match="linear"):
        Observe((region,)).apply(graph)
