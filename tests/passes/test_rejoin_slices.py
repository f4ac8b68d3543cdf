from collections.abc import Callable

import pytest
import torch
from golden import golden, text
from torch import Tensor, nn
from tracing import parameters_of, run, trace

from soda_compile.compiler.analyse import analyse
from soda_compile.passes.rejoin_slices import RejoinSlices


class Parts(nn.Module):
    """Takes a tensor [2, 6, 4] apart and puts something together again."""

    def __init__(self, rejoin: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, bias=False)
        self.rejoin = rejoin

    def forward(self, x: Tensor) -> Tensor:
        return self.rejoin(self.linear(x)) * 2


class SingleStream(nn.Module):
    """A block of joint tokens, as FLUX has them: takes and gives text and image apart."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([text, image], dim=1)
        both = both + self.linear(both)
        return both[:, 2:], both[:, :2]


class Joint(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([SingleStream() for _ in range(3)])

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        for block in self.blocks:
            image, text = block(image, text)
        return image


def test_golden():
    graph = trace(Parts(lambda x: torch.cat([x[:, :2], x[:, 2:]], 1)), torch.randn(2, 6, 4)).graph
    result = RejoinSlices().apply(graph)
    assert (result.changed, result.skipped) == (("cat",), ())
    assert text(graph) == golden("""
        %p_linear_weight: f32[4, 4] = input
        %x: f32[2, 6, 4] = input
        %linear: f32[2, 6, 4] = linear(%x, %p_linear_weight)
        %mul: f32[2, 6, 4] = mul(%linear, 2)
        return (%mul)
    """)


@pytest.mark.parametrize(
    "rejoin",
    [
        lambda x: torch.cat([x[:, :-4], x[:, -4:-1], x[:, -1:]], -2),
        lambda x: torch.cat(x.split([1, 2, 3], dim=1), 1),
        lambda x: torch.cat(x.split([1, 3], dim=-1), -1),
        lambda x: torch.cat(x.chunk(3, dim=1), 1),
    ],
    ids=["slices from the end", "split", "split of the last axis", "chunks"],
)
def test_all_parts_in_order_are_the_tensor(rejoin):
    model, x = Parts(rejoin), torch.randn(2, 6, 4)
    captured = trace(model, x)
    assert RejoinSlices().apply(captured.graph).changed == ("cat",)
    assert sum(node.op == "call_function" for node in captured.graph.nodes) == 2, "the parts are gone"
    torch.testing.assert_close(run(captured.graph, x=x, **parameters_of(model))[0], model(x))


@pytest.mark.parametrize(
    "rejoin",
    [
        lambda x: torch.cat([x[:, 2:], x[:, :2]], 1),
        lambda x: torch.cat([x[:, :2], x[:, 3:]], 1),
        lambda x: torch.cat([x[:, :3], x[:, 2:]], 1),
        lambda x: torch.cat([x[:, :3], x[:, 3:]], 2),
        lambda x: torch.cat([x[:, :2], (2 * x)[:, 2:]], 1),
        lambda x: torch.cat(x.split([1, 2, 3], dim=1)[:2], 1),
        lambda x: torch.cat([x[:, :2], x[:, 2::2]], 1),
    ],
    ids=["swapped", "a gap", "an overlap", "another axis", "another tensor", "a part missing", "every second"],
)
def test_anything_else_is_left(rejoin):
    captured = trace(Parts(rejoin), torch.randn(2, 6, 4))
    assert RejoinSlices().apply(captured.graph).changed == ()


def test_another_layout_is_left():
    captured = trace(Parts(lambda x: torch.cat(x.transpose(1, 2).split([2, 2], 1), 1)), torch.randn(2, 6, 4))
    result = RejoinSlices().apply(captured.graph)
    assert [str(note) for note in result.skipped] == ["cat: transpose has another layout"]


def test_blocks_hand_over_one_tensor():
    structure = analyse(trace(Joint(), torch.randn(2, 4, 4), torch.randn(2, 2, 4)))
    first, second, _ = (call for call in structure.calls if call.name.startswith("blocks"))
    assert len(first.outputs) == 1
    assert first.outputs[0] in second.inputs
