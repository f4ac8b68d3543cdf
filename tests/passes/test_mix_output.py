from dataclasses import replace

import torch
from golden import golden, text
from tracing import run, trace

from soda_compile.ir.roles import Slot, StepConstant
from soda_compile.ir.structure import OUTPUT_KIND, Cut, Region
from soda_compile.passes.mix_output import MixOutput
from soda_compile.passes.write_slots import WriteSlots


class Same(torch.nn.Module):
    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value


def output(dtype: torch.dtype = torch.float32):
    graph = trace(Same(), torch.randn(2, 3).to(dtype)).graph
    node = next(iter(graph.find_nodes(op="placeholder")))
    return graph, Region("", OUTPUT_KIND, (Cut.like(node.name, node.meta["val"]),), (), (), 0, ())


def test_golden():
    graph, region = output(torch.bfloat16)
    result = MixOutput(0, region, order=0).apply(graph)
    assert (result.changed, result.skipped) == (("output (order 0)",), ())
    assert text(graph) == golden("""
        %value: bf16[2, 3] = input
        %slot_value_0: bf16[2, 3] = input
        %coefficients_value: f32[2] = input
        %select_int: f32[] = select(%coefficients_value, 0, 0)
        %_to_copy_default: f32[2, 3] = _to_copy(%value, dtype=f32)
        %mul_tensor: f32[2, 3] = mul(%_to_copy_default, %select_int)
        %select_int_1: f32[] = select(%coefficients_value, 0, 1)
        %_to_copy_default_1: f32[2, 3] = _to_copy(%slot_value_0, dtype=f32)
        %mul_tensor_1: f32[2, 3] = mul(%_to_copy_default_1, %select_int_1)
        %add_tensor: f32[2, 3] = add(%mul_tensor, %mul_tensor_1)
        %_to_copy_default_2: bf16[2, 3] = _to_copy(%add_tensor, dtype=bf16)
        return (%_to_copy_default_2)
    """)
    roles = [node.meta["role"] for node in graph.find_nodes(op="placeholder") if "role" in node.meta]
    assert roles == [Slot("cut", 0, 0), StepConstant("coefficients", 0)]


def test_it_is_a_weighted_sum():
    graph, region = output()
    MixOutput(0, region, order=1).apply(graph)
    value, one, two = torch.randn(3, 2, 3)
    slots = {"slot_value_0": one, "slot_value_1": two}
    found = run(graph, value=value, coefficients_value=torch.tensor([0.9, 0.3, -0.2]), **slots)[0]
    torch.testing.assert_close(found, 0.9 * value + 0.3 * one - 0.2 * two)


def test_golden_of_an_anchor():
    graph, region = output()
    WriteSlots(0, replace(region)).apply(graph)
    assert text(graph) == golden("""
        %value: f32[2, 3] = input
        %slot_value: f32[2, 3] = input
        %copy__default: f32[2, 3] = copy_(%slot_value, %value)
        return (%value)
    """)
