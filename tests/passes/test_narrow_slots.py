import pytest
import torch
from golden import golden, text
from toys import gated, joint
from tracing import run

from soda_compile.ir.graphs import output_of
from soda_compile.ir.roles import Slot
from soda_compile.ir.slot_formats import FORMATS
from soda_compile.passes.dead_code import DeadCode
from soda_compile.passes.insert_reuse import InsertReuse
from soda_compile.passes.narrow_slots import NarrowSlots
from soda_compile.passes.write_slots import WriteSlots


def test_golden_read():
    graph, region = gated()
    InsertReuse(0, region).apply(graph)
    DeadCode().apply(graph)
    result = NarrowSlots(0, region, FORMATS["float8"]).apply(graph)
    assert (result.changed, result.skipped) == (("linear (float8)",), ())
    assert text(graph) == golden("""
        %h: f32[2, 3, 4] = input
        %gate: f32[2, 1, 4] = input
        %slot_linear: f8[2, 3, 4] = input
        %slot_linear_scale: f32[2, 3, 1] = input
        %_to_copy_default: f32[2, 3, 4] = _to_copy(%slot_linear, dtype=f32)
        %mul_tensor: f32[2, 3, 4] = mul(%_to_copy_default, %slot_linear_scale)
        %mul: f32[2, 3, 4] = mul(%gate, %mul_tensor)
        %add: f32[2, 3, 4] = add(%h, %mul)
        return (%add)
    """)


def test_golden_written():
    graph, region = gated(torch.bfloat16)
    WriteSlots(0, region).apply(graph)
    NarrowSlots(0, region, FORMATS["int8"]).apply(graph)
    assert text(graph) == golden("""
        %h: bf16[2, 3, 4] = input
        %p_linear_weight: bf16[4, 4] = input
        %gate: bf16[2, 1, 4] = input
        %silu: bf16[2, 3, 4] = silu(%h)
        %linear: bf16[2, 3, 4] = linear(%silu, %p_linear_weight)
        %mul: bf16[2, 3, 4] = mul(%gate, %linear)
        %add: bf16[2, 3, 4] = add(%h, %mul)
        %_to_copy_default: f32[2, 3, 4] = _to_copy(%linear, dtype=f32)
        %abs_default: f32[2, 3, 4] = abs(%_to_copy_default)
        %amax_default: f32[2, 3, 1] = amax(%abs_default, (-1), True)
        %clamp_min_default: f32[2, 3, 1] = clamp_min(%amax_default, 1.4928778255443051e-36)
        %mul_tensor: f32[2, 3, 1] = mul(%clamp_min_default, 0.007874015748031496)
        %div_tensor: f32[2, 3, 4] = div(%_to_copy_default, %mul_tensor)
        %round_default: f32[2, 3, 4] = round(%div_tensor)
        %_to_copy_default_1: i8[2, 3, 4] = _to_copy(%round_default, dtype=i8)
        return (%add, %_to_copy_default_1, %mul_tensor)
    """)
    assert output_of(graph).meta["roles"] == (Slot("cut", 0, 0, "write"), Slot("scale", 0, 0, "write"))


def test_golden_without_scales():
    graph, region = gated()
    WriteSlots(0, region).apply(graph)
    NarrowSlots(0, region, FORMATS["bfloat16"]).apply(graph)
    assert text(graph) == golden("""
        %h: f32[2, 3, 4] = input
        %p_linear_weight: f32[4, 4] = input
        %gate: f32[2, 1, 4] = input
        %silu: f32[2, 3, 4] = silu(%h)
        %linear: f32[2, 3, 4] = linear(%silu, %p_linear_weight)
        %mul: f32[2, 3, 4] = mul(%gate, %linear)
        %add: f32[2, 3, 4] = add(%h, %mul)
        %_to_copy_default: bf16[2, 3, 4] = _to_copy(%linear, dtype=bf16)
        return (%add, %_to_copy_default)
    """)
    assert output_of(graph).meta["roles"] == (Slot("cut", 0, 0, "write"),)


def test_what_is_no_wider_stays():
    graph, region = gated(torch.bfloat16)
    WriteSlots(0, region).apply(graph)
    before = text(graph)
    NarrowSlots(0, region, FORMATS["bfloat16"]).apply(graph)
    assert text(graph) == before


def test_every_cut_has_scales_of_its_own():
    graph, region = joint()
    InsertReuse(2, region).apply(graph)
    DeadCode().apply(graph)
    NarrowSlots(2, region, FORMATS["float8"]).apply(graph)
    roles = [node.meta["role"] for node in graph.find_nodes(op="placeholder") if "role" in node.meta]
    assert {(role.kind, role.cut) for role in roles} == {("cut", 0), ("cut", 1), ("scale", 0), ("scale", 1)}


@pytest.mark.parametrize(("name", "most"), [("bfloat16", 2**-8), ("int8", 1 / 254), ("float8", 2**-4)])
def test_what_is_read_is_what_was_written_but_for_rounding(name, most):
    """An element is off by no more than half a unit: of its own, or for int8 of its row's largest."""
    kept = FORMATS[name]
    writes, region = gated()
    WriteSlots(0, region).apply(writes)
    NarrowSlots(0, region, kept).apply(writes)
    reads, _ = gated()
    InsertReuse(0, region).apply(reads)
    DeadCode().apply(reads)
    NarrowSlots(0, region, kept).apply(reads)
    h, weight, gate = torch.randn(2, 3, 4), torch.randn(4, 4), torch.randn(2, 1, 4)
    h[0, 0] *= 1e4  # an outlier costs no other row its precision
    h[1, 2] = 0
    out, slot, *scale = run(writes, h=h, p_linear_weight=weight, gate=gate)
    assert slot.dtype == kept.dtype
    value = torch.nn.functional.silu(h) @ weight.T
    scales = {"slot_linear_scale": scale[0]} if scale else {}
    found = run(reads, h=h, gate=gate, slot_linear=slot, **scales)[0] - h
    largest = value.abs().amax(-1, keepdim=True) if name == "int8" else value.abs()
    assert ((found - gate * value).abs() <= gate.abs() * largest * most * 1.01 + 1e-5 * out.abs()).all()
    assert not torch.equal(found, out - h)
