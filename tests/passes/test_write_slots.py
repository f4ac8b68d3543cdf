from dataclasses import replace

import pytest
import torch
from golden import golden, text
from torch import Tensor, fx, nn
from toys import Gated, gated, joint, only, seeded
from tracing import parameters_of, run, trace

from soda_compile.analysis.regions import find_regions
from soda_compile.ir.graphs import find_node, output_of
from soda_compile.ir.roles import Slot
from soda_compile.ir.structure import Region
from soda_compile.passes.dead_code import DeadCode
from soda_compile.passes.insert_reuse import InsertReuse
from soda_compile.passes.write_slots import WriteSlots


class Parts(nn.Module):
    """h + a * b, where a linear gives both factors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        a, b = self.linear(h).chunk(2, dim=-1)
        return h + a * b


def parts() -> tuple[fx.Graph, Region]:
    """The graph of ``Parts`` for h [2, 3, 4], and a region whose cut is the first half."""
    graph = trace(Parts(), torch.randn(2, 3, 4)).graph
    region = only(find_regions(graph)[0])
    value = find_node(graph, "getitem").meta["val"]
    cut = replace(region.cuts[0], node="getitem", shape=tuple(value.shape), stride=tuple(value.stride()))
    return graph, replace(region, cuts=(cut,))


def test_golden():
    graph, region = gated()
    result = WriteSlots(0, region).apply(graph)
    assert (result.changed, result.skipped) == (("linear",), ())
    assert text(graph) == golden("""
        %h: f32[2, 3, 4] = input
        %p_linear_weight: f32[4, 4] = input
        %gate: f32[2, 1, 4] = input
        %silu: f32[2, 3, 4] = silu(%h)
        %linear: f32[2, 3, 4] = linear(%silu, %p_linear_weight)
        %mul: f32[2, 3, 4] = mul(%gate, %linear)
        %add: f32[2, 3, 4] = add(%h, %mul)
        return (%add, %linear)
    """)
    assert output_of(graph).meta["roles"] == (Slot("cut", 0, 0, "write"),)


def test_golden_of_a_cut_that_is_part_of_another_tensor():
    graph, region = parts()
    WriteSlots(0, region).apply(graph)
    assert text(graph) == golden("""
        %p_linear_weight: f32[8, 4] = input
        %h: f32[2, 3, 4] = input
        %slot_getitem: f32[2, 3, 4] = input
        %linear: f32[2, 3, 8] = linear(%h, %p_linear_weight)
        %split: (f32[2, 3, 4], f32[2, 3, 4]) = split(%linear, 4, -1)
        %getitem_1: f32[2, 3, 4] = getitem(%split, 1)
        %getitem: f32[2, 3, 4] = getitem(%split, 0)
        %copy__default: f32[2, 3, 4] = copy_(%slot_getitem, %getitem)
        %mul: f32[2, 3, 4] = mul(%getitem, %getitem_1)
        %add: f32[2, 3, 4] = add(%h, %mul)
        return (%add)
    """)
    assert "roles" not in output_of(graph).meta


def test_every_cut_has_a_slot_to_write():
    graph, region = joint()
    WriteSlots(2, region).apply(graph)
    assert output_of(graph).meta["roles"] == (Slot("cut", 2, 0, "write"), Slot("cut", 2, 1, "write"))


def test_what_is_returned_anyway_is_copied():
    graph, region = gated()
    output = output_of(graph)
    output.args = ((*output.args[0], find_node(graph, "linear")),)
    WriteSlots(0, region).apply(graph)
    assert len(output.args[0]) == 2
    assert "copy_" in text(graph)


def test_a_cut_that_is_gone_is_an_error():
    graph, region = gated()
    InsertReuse(0, region).apply(graph)
    DeadCode().apply(graph)
    with pytest.raises(LookupError, match="linear"):
        WriteSlots(0, region).apply(graph)


@pytest.mark.parametrize("returned", [True, False], ids=["read", "output unused"])
def test_the_cut_is_handed_over_even_where_nothing_else_reads_it(returned: bool):
    graph, region = gated()
    if not returned:
        output_of(graph).args = ((),)
    WriteSlots(0, region).apply(graph)
    DeadCode().apply(graph)
    graph.lint()
    model = seeded(Gated())
    h, gate = torch.randn(2, 3, 4), torch.randn(2, 1, 4)
    inputs = {"h": h, "gate": gate} if returned else {"h": h}
    *outputs, slot = run(graph, **inputs, **parameters_of(model))
    torch.testing.assert_close(slot, model.linear(torch.nn.functional.silu(h)).detach())
    if returned:
        torch.testing.assert_close(outputs[0], model(h, gate).detach())
