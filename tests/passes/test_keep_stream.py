import torch
from golden import golden, text
from torch import Tensor, nn
from tracing import run, trace

from soda_compile.ir.graphs import find_node
from soda_compile.ir.structure import STACK, Cut, Region
from soda_compile.passes.dead_code import DeadCode
from soda_compile.passes.keep_stream import KeepStream
from soda_compile.passes.write_slots import WriteSlots


class Stack(nn.Module):
    def forward(self, after: Tensor, without: Tensor) -> Tensor:
        return without + (after - without)


def stack():
    graph = trace(Stack(), *torch.randn(2, 2, 3)).graph
    cut = Cut.like("sub", find_node(graph, "sub").meta["val"])
    return graph, Region("", STACK, (cut,), ("sub",), ("without",), 0, ())


def test_golden():
    graph, region = stack()
    assert KeepStream(region).apply(graph).changed == ("stack",)
    WriteSlots(0, region).apply(graph)
    assert text(graph) == golden("""
        %after: f32[2, 3] = input
        %without: f32[2, 3] = input
        %sub: f32[2, 3] = sub(%after, %without)
        return (%after, %sub)
    """)


def test_a_difference_that_is_not_kept_is_dead():
    graph, region = stack()
    KeepStream(region).apply(graph)
    DeadCode().apply(graph)
    assert text(graph) == golden("""
        %after: f32[2, 3] = input
        return (%after)
    """)


def test_the_stream_is_exact():
    graph, region = stack()
    KeepStream(region).apply(graph)
    after, without = torch.full((2, 3), 1e-9), torch.full((2, 3), 1e9)
    assert torch.equal(run(graph, after=after, without=without)[0], after)
