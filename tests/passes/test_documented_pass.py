"""The example of a pass in docs/extending.md does what the text says."""

from typing import Any

import torch
from documented import example, scope_of
from golden import text
from torch import Tensor, nn
from tracing import graph_of, run, trace


def fold_ones() -> Any:
    return scope_of("pass")["FoldOnes"]()


class TimesOne(nn.Module):
    """h * 1 + gate."""

    def forward(self, h: Tensor, gate: Tensor) -> Tensor:
        return h * 1 + gate


def test_golden_as_documented():
    graph = trace(TimesOne(), torch.randn(2, 3, 4), torch.randn(2, 1, 4)).graph
    assert text(graph) == example("before")
    result = fold_ones().apply(graph)
    graph.lint()
    assert (result.changed, result.skipped) == (("mul",), ())
    assert text(graph) == example("after")
    assert fold_ones().apply(graph).changed == ()


def test_numbers_are_equal():
    h, gate = torch.randn(2, 3, 4), torch.randn(2, 1, 4)
    graph = trace(TimesOne(), h, gate).graph
    fold_ones().apply(graph)
    (folded,) = run(graph, h=h, gate=gate)
    assert torch.equal(folded, TimesOne()(h, gate))


def test_a_product_of_another_dtype_is_left_with_the_reason():
    graph = graph_of(lambda h: h * 1.0, torch.ones(2, 3, dtype=torch.int64)).graph
    result = fold_ones().apply(graph)
    assert result.changed == ()
    assert [str(note) for note in result.skipped] == ["mul: the product has another dtype than its operand"]
