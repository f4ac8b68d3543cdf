from collections.abc import Callable

import pytest
import torch
from golden import golden, text
from thorough import gated
from torch import Tensor, fx, nn
from toys import seeded
from tracing import parameters_of, run, trace

from soda_compile.passes.base import PassResult
from soda_compile.passes.dead_code import DeadCode
from soda_compile.passes.narrow_linear import NarrowLinear

Take = Callable[[Tensor], Tensor]


class Modulation(nn.Module):
    """A linear of 12 output features, of which ``take`` reads some."""

    def __init__(self, take: Callable[[Tensor], Tensor | tuple[Tensor, ...]], bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 12, bias=bias)
        self.take = take

    def forward(self, c: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.take(self.linear(c))


def narrowed(model: Modulation) -> tuple[fx.Graph, PassResult]:
    """The graph for c [2, 4] after the pass, and what the pass says."""
    graph = trace(model, torch.randn(2, 4)).graph
    DeadCode().apply(graph)
    result = NarrowLinear().apply(graph)
    DeadCode().apply(graph)
    graph.lint()
    return graph, result


def widths(graph: fx.Graph) -> list[int]:
    """Output features of the linears that are left."""
    return sorted(
        node.meta["val"].shape[-1]
        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    )


def test_golden_gate_alone():
    model = Modulation(lambda x: x.chunk(3, dim=1)[2].exp())
    graph = trace(model, torch.randn(2, 4)).graph
    DeadCode().apply(graph)
    assert text(graph) == golden("""
        %p_linear_weight: f32[12, 4] = input
        %p_linear_bias: f32[12] = input
        %c: f32[2, 4] = input
        %linear: f32[2, 12] = linear(%c, %p_linear_weight, %p_linear_bias)
        %split: (f32[2, 4], f32[2, 4], f32[2, 4]) = split(%linear, 4, 1)
        %getitem_2: f32[2, 4] = getitem(%split, 2)
        %exp: f32[2, 4] = exp(%getitem_2)
        return (%exp)
    """)
    result = NarrowLinear().apply(graph)
    DeadCode().apply(graph)
    assert (result.changed, result.skipped) == (("linear: 4 of 12 output features",), ())
    assert text(graph) == golden("""
        %p_linear_weight: f32[12, 4] = input
        %p_linear_bias: f32[12] = input
        %c: f32[2, 4] = input
        %slice_tensor: f32[4, 4] = slice(%p_linear_weight, 0, 8, 12)
        %slice_tensor_1: f32[4] = slice(%p_linear_bias, 0, 8, 12)
        %linear_default: f32[2, 4] = linear(%c, %slice_tensor, %slice_tensor_1)
        %exp: f32[2, 4] = exp(%linear_default)
        return (%exp)
    """)


def test_golden_chunks_that_touch_stay_one_linear_behind_a_cast_and_a_new_axis():
    def take(x: Tensor) -> Tensor:
        parts = x.double().unsqueeze(1).chunk(4, dim=-1)
        return parts[1] * parts[2]

    graph, _ = narrowed(Modulation(take, bias=False))
    assert text(graph) == golden("""
        %p_linear_weight: f32[12, 4] = input
        %c: f32[2, 4] = input
        %slice_tensor: f32[6, 4] = slice(%p_linear_weight, 0, 3, 9)
        %linear_default: f32[2, 6] = linear(%c, %slice_tensor)
        %_to_copy_default: f64[2, 6] = _to_copy(%linear_default, dtype=f64)
        %unsqueeze_default: f64[2, 1, 6] = unsqueeze(%_to_copy_default, 1)
        %slice_tensor_1: f64[2, 1, 3] = slice(%unsqueeze_default, 2, 0, 3)
        %slice_tensor_2: f64[2, 1, 3] = slice(%unsqueeze_default, 2, 3, 6)
        %mul: f64[2, 1, 3] = mul(%slice_tensor_1, %slice_tensor_2)
        return (%mul)
    """)


READS: dict[str, tuple[Take, list[int]]] = {
    "chunk": (lambda x: x.chunk(3, -1)[1].exp(), [4]),
    "chunk with a short end": (lambda x: x.chunk(5, -1)[3].exp(), [3]),
    "split": (lambda x: x.split(5, 1)[2].exp(), [2]),
    "split with sizes": (lambda x: x.split([2, 7, 3], -1)[1].exp(), [7]),
    "slice": (lambda x: x[:, 3:8].exp(), [5]),
    "slice from the end": (lambda x: x[:, -5:-1].exp(), [4]),
    "slice to beyond the end": (lambda x: x[:, 7:99].exp(), [5]),
    "slice without a start": (lambda x: x[..., :2].exp(), [2]),
    "two chunks apart": (lambda x: x.chunk(6, -1)[2] * x.chunk(6, -1)[5], [2, 2]),
    "two chunks that touch": (lambda x: x.chunk(6, -1)[2] * x.chunk(6, -1)[3], [4]),
    "slices that overlap": (lambda x: x[:, 2:6] * x[:, 3:7], [5]),
    "one chunk, read twice": (lambda x: x.chunk(3, -1)[1].exp() + x.chunk(3, -1)[1], [4]),
    "one slice, read twice": (lambda x: (lambda part: part.exp() + part.sin())(x[:, 4:8]), [4]),
    "behind a new axis": (lambda x: x.unsqueeze(1).chunk(3, -1)[2].exp(), [4]),
    "behind a cast": (lambda x: x.double().chunk(3, -1)[0].exp(), [4]),
    "through two casts apart": (lambda x: x.double()[:, :2] * x.half()[:, 8:10], [2, 2]),
}


@pytest.mark.parametrize("bias", gated(True, others=[False]), ids=["bias", "no bias"])
@pytest.mark.parametrize(("take", "expected"), READS.values(), ids=READS)
def test_narrow_linears_give_what_eager_gives(take: Take, expected: list[int], bias: bool):
    model = seeded(Modulation(take, bias))
    graph, result = narrowed(model)
    assert widths(graph) == expected
    assert len(result.changed) == 1
    c = torch.randn(2, 4)
    (out,) = run(graph, c=c, **parameters_of(model))
    torch.testing.assert_close(out, model(c).detach(), rtol=1e-5, atol=1e-6)


ALL_USED = "all of its output is used"
ANYTHING_ELSE = "something else than chunks along the feature axis reads it"
SKIPPED: dict[str, tuple[Take, str]] = {
    "every chunk": (lambda x: torch.stack(x.chunk(3, -1)), ALL_USED),
    "slices that overlap": (lambda x: x[:, :8].sum(1) + x[:, 4:].sum(1), ALL_USED),
    "read as a whole too": (lambda x: x.chunk(3, -1)[0] + x.exp()[:, :4], ANYTHING_ELSE),
    "read behind a cast too": (lambda x: x.chunk(3, -1)[0] + x.double().sum(), ANYTHING_ELSE),
    "every second feature": (lambda x: x[:, :2] + x[:, ::6], ANYTHING_ELSE),
    "rows too": (lambda x: x[:, :3].sum() + x[:1].sum(), ANYTHING_ELSE),
}


@pytest.mark.parametrize(("take", "reason"), SKIPPED.values(), ids=SKIPPED)
def test_skipped_with_the_reason(take: Take, reason: str):
    graph, result = narrowed(Modulation(take))
    assert result.changed == ()
    assert [str(note) for note in result.skipped] == [f"linear: {reason}"]
    assert widths(graph) == [12]


def test_a_linear_that_is_read_as_a_whole_is_no_news():
    graph, result = narrowed(Modulation(lambda x: x.exp()))
    assert result == PassResult()
    assert widths(graph) == [12]


def test_chunks_of_a_new_last_axis_are_not_features():
    graph, result = narrowed(Modulation(lambda x: x.unsqueeze(-1).expand(-1, -1, 4).chunk(2, -1)[0].exp()))
    assert result.changed == ()
    assert widths(graph) == [12]
