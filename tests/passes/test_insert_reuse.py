import pytest
import torch
from golden import golden, text
from torch import nn
from toys import Gated, gated, joint, seeded
from tracing import run

from soda_compile.ir.graphs import find_node
from soda_compile.ir.roles import Slot
from soda_compile.passes.dead_code import DeadCode
from soda_compile.passes.insert_reuse import InsertReuse


def test_golden_one_cut():
    graph, region = gated()
    assert text(graph) == golden("""
        %h: f32[2, 3, 4] = input
        %p_linear_weight: f32[4, 4] = input
        %gate: f32[2, 1, 4] = input
        %silu: f32[2, 3, 4] = silu(%h)
        %linear: f32[2, 3, 4] = linear(%silu, %p_linear_weight)
        %mul: f32[2, 3, 4] = mul(%gate, %linear)
        %add: f32[2, 3, 4] = add(%h, %mul)
        return (%add)
    """)
    result = InsertReuse(0, region).apply(graph)
    assert result.changed == ("linear",)
    assert result.skipped == ()
    assert text(graph) == golden("""
        %h: f32[2, 3, 4] = input
        %p_linear_weight: f32[4, 4] = input
        %gate: f32[2, 1, 4] = input
        %slot_linear: f32[2, 3, 4] = input
        %silu: f32[2, 3, 4] = silu(%h)
        %linear: f32[2, 3, 4] = linear(%silu, %p_linear_weight)
        %mul: f32[2, 3, 4] = mul(%gate, %slot_linear)
        %add: f32[2, 3, 4] = add(%h, %mul)
        return (%add)
    """)


def test_golden_joint_attention_dies_with_both_cuts():
    graph, region = joint()
    InsertReuse(0, region).apply(graph)
    DeadCode().apply(graph)
    assert text(graph) == golden("""
        %h: f32[2, 3, 4] = input
        %c: f32[2, 2, 4] = input
        %slot_linear: f32[2, 3, 4] = input
        %slot_linear_1: f32[2, 2, 4] = input
        %add: f32[2, 3, 4] = add(%h, %slot_linear)
        %add_1: f32[2, 2, 4] = add(%c, %slot_linear_1)
        return (%add, %add_1)
    """)


def test_slots_tell_the_runtime_what_they_hold():
    graph, region = joint()
    InsertReuse(7, region).apply(graph)
    roles = [node.meta["role"] for node in graph.find_nodes(op="placeholder") if "role" in node.meta]
    assert roles == [Slot("cut", region=7, cut=0), Slot("cut", region=7, cut=1)]


def test_a_cut_that_is_gone_is_an_error():
    graph, region = gated()
    InsertReuse(0, region).apply(graph)
    DeadCode().apply(graph)
    with pytest.raises(LookupError, match="no node linear; a cut must be rewritten before it is removed"):
        InsertReuse(0, region).apply(graph)
    with pytest.raises(LookupError, match="no node nowhere"):
        find_node(graph, "nowhere")


def test_a_stale_slot_gives_what_eager_gives_for_the_stale_branch():
    graph, region = gated()
    InsertReuse(0, region).apply(graph)
    DeadCode().apply(graph)
    model = seeded(Gated())
    h, gate, old = torch.randn(2, 3, 4), torch.randn(2, 1, 4), torch.randn(2, 3, 4)
    stale = model.linear(nn.functional.silu(old)).detach()
    (out,) = run(graph, h=h, gate=gate, slot_linear=stale)
    torch.testing.assert_close(out, h + gate * stale, rtol=0, atol=0)
    (exact,) = run(graph, h=h, gate=gate, slot_linear=model.linear(nn.functional.silu(h)).detach())
    torch.testing.assert_close(exact, model(h, gate))
