import torch
from golden import golden, text
from torch import Tensor, nn
from tracing import parameters_of, run, trace

from soda_compile.compiler.analyse import analyse
from soda_compile.passes.make_contiguous import MakeContiguous


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.linear(h)


class Viewing(Block):
    """Relies on the layout that the patch embedding gives: the transposed tensor can be viewed as an image."""

    def forward(self, h: Tensor) -> Tensor:
        return h + self.linear(h.transpose(1, 2).view(2, 12).view(2, 4, 3).transpose(1, 2))


class Patches(nn.Module):
    """Patches come as [B, D, N] and go through the blocks as [B, N, D]."""

    def __init__(self, block: type[nn.Module] = Block) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block(), block()])

    def forward(self, patches: Tensor) -> Tensor:
        h = patches.mul(2).transpose(1, 2)
        for block in self.blocks:
            h = block(h)
        return h


def test_golden():
    graph = trace(Patches(), torch.randn(2, 4, 3)).graph
    result = MakeContiguous().apply(graph)
    assert (result.changed, result.skipped) == (("transpose",), ())
    assert text(graph) == golden("""
        %patches: f32[2, 4, 3] = input
        %p_blocks_0_linear_weight: f32[4, 4] = input
        %p_blocks_1_linear_weight: f32[4, 4] = input
        %mul: f32[2, 4, 3] = mul(%patches, 2)
        %transpose: f32[2, 3, 4] = transpose(%mul, 1, 2)
        %clone_default: f32[2, 3, 4] = clone(%transpose, memory_format=torch.contiguous_format)
        %linear: f32[2, 3, 4] = linear(%clone_default, %p_blocks_0_linear_weight)
        %add: f32[2, 3, 4] = add(%clone_default, %linear)
        %linear_1: f32[2, 3, 4] = linear(%add, %p_blocks_1_linear_weight)
        %add_1: f32[2, 3, 4] = add(%add, %linear_1)
        return (%add_1)
    """)
    assert all(
        node.meta["val"].is_contiguous()
        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)
    )


def test_equal_blocks_share_one_graph():
    structure = analyse(trace(Patches(), torch.randn(2, 4, 3)))
    first, second = (call.block.key for call in structure.calls if call.name.startswith("blocks"))
    assert first == second


def test_numerics():
    model, patches = Patches(), torch.randn(2, 4, 3)
    graph = trace(model, patches).graph
    MakeContiguous().apply(graph)
    (result,) = run(graph, patches=patches, **parameters_of(model))
    torch.testing.assert_close(result, model(patches).detach())


def test_a_view_that_relies_on_the_layout_keeps_it():
    model, patches = Patches(Viewing), torch.randn(2, 4, 3)
    graph = trace(model, patches).graph
    before = text(graph)
    result = MakeContiguous().apply(graph)
    assert result.changed == ()
    assert "a view relies on its layout" in str(result.skipped[0])
    assert text(graph) == before
    (value,) = run(graph, patches=patches, **parameters_of(model))
    torch.testing.assert_close(value, model(patches).detach())
