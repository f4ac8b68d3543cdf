import pytest
import torch
from golden import golden, text
from toys import gated, joint
from tracing import run

from soda_compile.ir.roles import Slot, StepConstant
from soda_compile.passes.dead_code import DeadCode
from soda_compile.passes.insert_forecast import InsertForecast
from soda_compile.plans.coefficients import lagrange


def test_golden_first_order():
    graph, region = gated()
    result = InsertForecast(0, region, order=1).apply(graph)
    assert (result.changed, result.skipped) == (("linear (order 1)",), ())
    DeadCode().apply(graph)
    assert text(graph) == golden("""
        %h: f32[2, 3, 4] = input
        %gate: f32[2, 1, 4] = input
        %coefficients_linear: f32[2] = input
        %slot_linear_0: f32[2, 3, 4] = input
        %slot_linear_1: f32[2, 3, 4] = input
        %select_int: f32[] = select(%coefficients_linear, 0, 0)
        %mul_tensor: f32[2, 3, 4] = mul(%slot_linear_0, %select_int)
        %select_int_1: f32[] = select(%coefficients_linear, 0, 1)
        %mul_tensor_1: f32[2, 3, 4] = mul(%slot_linear_1, %select_int_1)
        %add_tensor: f32[2, 3, 4] = add(%mul_tensor, %mul_tensor_1)
        %mul: f32[2, 3, 4] = mul(%gate, %add_tensor)
        %add: f32[2, 3, 4] = add(%h, %mul)
        return (%add)
    """)


def test_golden_second_order_in_bfloat16_is_rounded_once():
    graph, region = gated(torch.bfloat16)
    InsertForecast(0, region, order=2).apply(graph)
    DeadCode().apply(graph)
    assert text(graph) == golden("""
        %h: bf16[2, 3, 4] = input
        %gate: bf16[2, 1, 4] = input
        %coefficients_linear: f32[3] = input
        %slot_linear_0: bf16[2, 3, 4] = input
        %slot_linear_1: bf16[2, 3, 4] = input
        %slot_linear_2: bf16[2, 3, 4] = input
        %select_int: f32[] = select(%coefficients_linear, 0, 0)
        %_to_copy_default: f32[2, 3, 4] = _to_copy(%slot_linear_0, dtype=f32)
        %mul_tensor: f32[2, 3, 4] = mul(%_to_copy_default, %select_int)
        %select_int_1: f32[] = select(%coefficients_linear, 0, 1)
        %_to_copy_default_1: f32[2, 3, 4] = _to_copy(%slot_linear_1, dtype=f32)
        %mul_tensor_1: f32[2, 3, 4] = mul(%_to_copy_default_1, %select_int_1)
        %select_int_2: f32[] = select(%coefficients_linear, 0, 2)
        %_to_copy_default_2: f32[2, 3, 4] = _to_copy(%slot_linear_2, dtype=f32)
        %mul_tensor_2: f32[2, 3, 4] = mul(%_to_copy_default_2, %select_int_2)
        %add_tensor: f32[2, 3, 4] = add(%mul_tensor, %mul_tensor_1)
        %add_tensor_1: f32[2, 3, 4] = add(%add_tensor, %mul_tensor_2)
        %_to_copy_default_3: bf16[2, 3, 4] = _to_copy(%add_tensor_1, dtype=bf16)
        %mul: bf16[2, 3, 4] = mul(%gate, %_to_copy_default_3)
        %add: bf16[2, 3, 4] = add(%h, %mul)
        return (%add)
    """)


def test_the_cuts_of_one_region_share_its_coefficients():
    graph, region = joint()
    InsertForecast(3, region, order=1).apply(graph)
    DeadCode().apply(graph)
    roles = [node.meta["role"] for node in graph.find_nodes(op="placeholder") if "role" in node.meta]
    assert roles == [
        StepConstant("coefficients", 3),
        *(Slot("cut", 3, cut, age=age) for cut in (0, 1) for age in (0, 1)),
    ]
    assert "attention" not in text(graph)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_polynomials_are_forecast_at_uneven_steps(order: int, dtype: torch.dtype):
    graph, region = gated(dtype)
    InsertForecast(0, region, order).apply(graph)
    DeadCode().apply(graph)
    terms = torch.randn(order + 1, 2, 3, 4, dtype=torch.float64)
    points, at = [7, 4, 2][: order + 1], 9
    values = {step: sum(term * step**power for power, term in enumerate(terms)).to(dtype) for step in points}
    slots = {f"slot_linear_{age}": values[step] for age, step in enumerate(points)}
    coefficients = torch.tensor(lagrange(points, at))
    h, gate = torch.zeros(2, 3, 4, dtype=dtype), torch.ones(2, 1, 4, dtype=dtype)
    (out,) = run(graph, h=h, gate=gate, coefficients_linear=coefficients, **slots)
    assert out.dtype == dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = sum(c * values[step].to(wide) for c, step in zip(coefficients, points, strict=True))
    torch.testing.assert_close(out, expected.to(dtype), rtol=1e-6, atol=1e-5)
    if dtype == torch.float64:
        truth = sum(term * at**power for power, term in enumerate(terms))
        torch.testing.assert_close(out, truth, rtol=1e-5, atol=1e-5)


def test_bfloat16_slots_are_not_summed_in_bfloat16():
    """257 - 256 is 1; a sum of terms rounded to 8 bits would give 0 or 2."""
    graph, region = gated(torch.bfloat16)
    InsertForecast(0, region, order=1).apply(graph)
    DeadCode().apply(graph)
    whole = torch.ones(2, 3, 4, dtype=torch.bfloat16)
    coefficients = torch.tensor([257.0, -256.0])
    (out,) = run(
        graph,
        h=0 * whole,
        gate=whole[:, :1],
        coefficients_linear=coefficients,
        slot_linear_0=whole,
        slot_linear_1=whole,
    )
    assert torch.equal(out, whole)
