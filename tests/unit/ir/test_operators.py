"""FLOPs of captured graphs against torch's own counter, and what counts as heavy."""

import math

import pytest
import torch
from families import FAMILIES
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tracing import trace

from soda_compile.ir.aten_operators import flops, graph_flops, is_heavy, looks_through


def counted(model: nn.Module, *args: Tensor, **kwargs: object) -> int:
    # The counter knows attention on a CPU as the products that it is made of, not as one operator.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    return counter.get_total_flops()


class Calls(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args, self.weight)


F = nn.functional
CASES = {
    "linear": (lambda x, w: F.linear(x, w), [(2, 3, 4)]),
    "linear with bias": (lambda x, w: F.linear(x, w, w[:, 0]), [(2, 3, 4)]),
    "matmul": (lambda x, y, w: x @ y, [(2, 3, 4), (4, 5)]),
    "matmul of batches": (lambda x, y, w: x @ y, [(2, 7, 3, 4), (2, 7, 4, 5)]),
    "matmul that broadcasts": (lambda x, y, w: x @ y, [(2, 1, 3, 4), (7, 4, 5)]),
    "bmm": (lambda x, y, w: torch.bmm(x, y), [(2, 3, 4), (2, 4, 5)]),
    "addmm": (lambda x, y, w: torch.addmm(w[:5, 0], x, y), [(3, 4), (4, 5)]),
    "baddbmm": (lambda x, y, w: torch.baddbmm(w[:1, :1, None], x, y), [(2, 3, 4), (2, 4, 5)]),
    "einsum": (lambda x, y, w: torch.einsum("bnd,bmd->bnm", x, y), [(2, 3, 4), (2, 5, 4)]),
    "einsum of three letters apart": (
        lambda x, y, w: torch.einsum("bhnd, hde -> bhne", x, y),
        [(2, 3, 5, 4), (3, 4, 6)],
    ),
    "einsum that permutes": (lambda x, w: torch.einsum("nhwpqc->nchpwq", x), [(2, 3, 3, 2, 2, 4)]),
    "attention": (lambda q, k, w: F.scaled_dot_product_attention(q, k, k), [(2, 3, 5, 4), (2, 3, 7, 4)]),
    "convolution": (lambda x, y, w: F.conv2d(x, y, padding=1), [(2, 4, 8, 8), (6, 4, 3, 3)]),
    "convolution of a grid of patches": (lambda x, y, w: F.conv2d(x, y, stride=2), [(2, 4, 8, 8), (6, 4, 2, 2)]),
    "convolution in groups": (lambda x, y, w: F.conv2d(x, y, groups=2), [(2, 4, 8, 8), (6, 2, 3, 3)]),
    "convolution in three dimensions": (lambda x, y, w: F.conv3d(x, y), [(1, 2, 4, 4, 4), (3, 2, 2, 2, 2)]),
}


@pytest.mark.parametrize(("function", "shapes"), CASES.values(), ids=CASES)
def test_flops_are_those_that_torch_counts(function, shapes: list[tuple[int, ...]]):
    model, inputs = Calls(function), [torch.randn(shape) for shape in shapes]
    assert graph_flops(trace(model, *inputs).graph) == counted(model, *inputs)


def test_flops_of_an_einsum_with_an_ellipsis():
    model = Calls(lambda x, y, w: torch.einsum("...nd,...md->...nm", x, y))
    inputs = [torch.randn(2, 7, 3, 4), torch.randn(2, 7, 5, 4)]
    assert graph_flops(trace(model, *inputs).graph) == counted(model, *inputs)


@pytest.mark.parametrize("name", ["dit", "sd3", "wan"])
def test_flops_of_whole_models_are_those_that_torch_counts(name: str):
    family = FAMILIES[name]
    model, inputs = family.build(), family.inputs(0, 4)
    assert graph_flops(trace(model, **inputs).graph) == counted(model, **inputs)


def test_only_products_attention_and_convolutions_are_heavy():
    graph = trace(Calls(lambda x, w: F.softmax(F.linear(x, w).exp(), -1)), torch.randn(2, 4)).graph
    heavy = [node for node in graph.nodes if node.op == "call_function" and is_heavy(node)]
    assert [flops(node) for node in heavy] == [2 * 2 * 6 * 4]
    assert sum(flops(node) for node in graph.nodes) == flops(heavy[0])


def test_what_looks_through():
    def function(x: Tensor, w: Tensor) -> Tensor:
        left, _ = x.double().reshape(2, 2, 2).transpose(0, 1).clamp(-1, 1)[:, None].chunk(2, dim=-1)
        return left.exp() * 2

    graph = trace(Calls(function), torch.randn(2, 4)).graph
    calls = [node for node in graph.nodes if node.op == "call_function"]
    assert [node.name for node in calls if not looks_through(node)] == ["exp", "mul"]
    assert len(calls) > 6


def test_the_work_of_a_projection_written_out():
    graph = trace(nn.Linear(4, 6), torch.randn(2, 3, 4)).graph
    assert graph_flops(graph) == 2 * math.prod((2, 3, 4, 6))
