import torch
from golden import golden, text
from torch import Tensor, nn
from tracing import trace

from soda_compile.ir.graphs import find_node
from soda_compile.passes.dead_code import DeadCode


class TwoPaths(nn.Module):
    """An attention with dropout and a linear, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        attended = nn.functional.scaled_dot_product_attention(h, h, h, dropout_p=0.5)
        return self.linear(h), h + attended


def test_golden_nodes_and_inputs():
    graph = trace(TwoPaths(), torch.randn(1, 2, 4)).graph
    output = next(iter(reversed(graph.nodes)))
    output.args = (output.args[0][1:],)
    result = DeadCode().apply(graph)
    assert result.changed == ("p_linear_weight", "p_linear_bias", "linear")
    assert text(graph) == golden("""
        %h: f32[1, 2, 4] = input
        %scaled_dot_product_attention: f32[1, 2, 4] = scaled_dot_product_attention(%h, %h, %h, None, 0.5)
        %add: f32[1, 2, 4] = add(%h, %scaled_dot_product_attention)
        return (%add)
    """)


def test_operators_that_may_draw_random_numbers_are_erased_too():
    graph = trace(TwoPaths(), torch.randn(1, 2, 4)).graph
    output = next(iter(reversed(graph.nodes)))
    output.args = (output.args[0][:1],)
    DeadCode().apply(graph)
    assert text(graph) == golden("""
        %h: f32[1, 2, 4] = input
        %p_linear_weight: f32[4, 4] = input
        %p_linear_bias: f32[4] = input
        %linear: f32[1, 2, 4] = linear(%h, %p_linear_weight, %p_linear_bias)
        return (%linear)
    """)


def test_what_writes_to_an_input_stays():
    graph = trace(TwoPaths(), torch.randn(1, 2, 4)).graph
    copied = find_node(graph, "linear")
    with graph.inserting_after(copied):
        write = graph.call_function(torch.ops.aten.copy_.default, (find_node(graph, "h"), copied))
    output = next(iter(reversed(graph.nodes)))
    output.args = ((),)
    DeadCode().apply(graph)
    assert [node.name for node in graph.nodes] == [
        "h",
        "p_linear_weight",
        "p_linear_bias",
        "linear",
        write.name,
        "output",
    ]


def test_nothing_is_left_to_do_the_second_time():
    graph = trace(TwoPaths(), torch.randn(1, 2, 4)).graph
    before = text(graph)
    assert DeadCode().apply(graph).changed == ()
    assert text(graph) == before
