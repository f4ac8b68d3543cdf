"""Sizes as expressions: what a graph of its own computes from the sizes that it takes."""

import pytest
import sympy
import torch
from torch import fx
from torch.utils._sympy.functions import FloatPow, FloorDiv, FloorToInt, ToFloat, TruncToInt

from soda_compile.torch_internals.size_expressions import SizeNames, comparable, slice_bounds

S, T = (sympy.Symbol(name, integer=True, positive=True) for name in ("s", "t"))
ROOT = FloatPow(ToFloat(S), sympy.Float(0.5))


@pytest.mark.parametrize(
    ("wanted", "value"),
    [(TruncToInt(ROOT), 4), (FloorToInt(ROOT), 4), (FloorDiv(S, 3) + 2 * T, 19), (S * T, 119), (S - T, 10)],
)
def test_a_graph_computes_what_follows(wanted: sympy.Expr, value: int) -> None:
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    names = SizeNames([(size, fx.Proxy(graph.placeholder(size.name), tracer)) for size in (S, T)])
    graph.output(names.of(wanted).node)
    assert fx.GraphModule({}, graph)(17, 7) == value


def test_sizes_are_compared_as_they_are_written() -> None:
    assert comparable([2, sympy.Integer(3)]) == comparable(torch.Size([2, 3])) == (2, 3)
    assert comparable([2]) != comparable([3])


@pytest.mark.parametrize("bounds", [(None, None), (1, 3), (-2, None), (0, 99), (None, -1)])
def test_bounds_of_a_slice(bounds: tuple[int | None, int | None]) -> None:
    assert slice_bounds(*bounds, 5) == slice(*bounds).indices(5)[:2]
