import pytest
import torch
from golden import golden, text
from toys import Gated, gated, joint, seeded
from tracing import parameters_of, run

from soda_compile.passes.dead_code import DeadCode
from soda_compile.passes.insert_reuse import InsertReuse
from soda_compile.passes.write_slots import WriteSlots
from soda_compile.structure import SlotInput


def test_golden():
    graph, region = gated()
    result = WriteSlots(0, region).apply(graph)
    assert (result.changed, result.skipped) == (("linear",), ())
    assert text(graph) == golden("""
        %h: f32[2, 3, 4] = input
        %p_linear_weight: f32[4, 4] = input
        %gate: f32[2, 1, 4] = input
        %slot_linear: f32[2, 3, 4] = input
        %silu: f32[2, 3, 4] = silu(%h)
        %linear: f32[2, 3, 4] = linear(%silu, %p_linear_weight)
        %copy__default: f32[2, 3, 4] = copy_(%slot_linear, %linear)
        %mul: f32[2, 3, 4] = mul(%gate, %linear)
        %add: f32[2, 3, 4] = add(%h, %mul)
        return (%add)
    """)


def test_every_cut_has_a_slot_to_write():
    graph, region = joint()
    WriteSlots(2, region).apply(graph)
    roles = [node.meta["role"] for node in graph.find_nodes(op="placeholder") if "role" in node.meta]
    assert roles == [SlotInput(2, 0, None), SlotInput(2, 1, None)]


def test_a_cut_that_is_gone_is_an_error():
    graph, region = gated()
    InsertReuse(0, region).apply(graph)
    DeadCode().apply(graph)
    with pytest.raises(LookupError, match="linear"):
        WriteSlots(0, region).apply(graph)


@pytest.mark.parametrize("returned", [True, False], ids=["read", "output unused"])
def test_the_slot_is_written_in_place_even_where_nothing_else_reads_the_cut(returned: bool):
    graph, region = gated()
    if not returned:
        next(iter(reversed(graph.nodes))).args = ((),)
    WriteSlots(0, region).apply(graph)
    DeadCode().apply(graph)
    graph.lint()
    model = seeded(Gated())
    h, gate, slot = torch.randn(2, 3, 4), torch.randn(2, 1, 4), torch.zeros(2, 3, 4)
    inputs = {"h": h, "gate": gate} if returned else {"h": h}
    address = slot.data_ptr()
    outputs = run(graph, **inputs, **parameters_of(model), slot_linear=slot)
    assert slot.data_ptr() == address
    torch.testing.assert_close(slot, model.linear(torch.nn.functional.silu(h)).detach())
    if returned:
        torch.testing.assert_close(outputs[0], model(h, gate).detach())
