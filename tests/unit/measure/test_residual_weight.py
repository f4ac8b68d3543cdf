"""The weight of each element of a cut in the residual stream, against the change of the branch itself."""

import pytest
import torch
from torch import Tensor, fx, nn
from tracing import parameters_of, trace

from soda_compile.analysis.cut_to_branch import CutToBranch, cut_to_branch
from soda_compile.analysis.regions import find_regions
from soda_compile.ir.graphs import find_node
from soda_compile.ir.structure import Region
from soda_compile.measure.residual_weight import residual_weight

H = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
GATE = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=dtype)
        self.second = nn.Linear(4, 4, dtype=dtype)
        self.norm = nn.LayerNorm(4)


class Gate(Block):
    def forward(self, h: Tensor, gate: Tensor) -> Tensor:
        return h + gate * self.linear(h)


class GateAndShift(Block):
    def forward(self, h: Tensor, gate: Tensor) -> Tensor:
        return h + (gate * self.linear(h) / 3 - gate)


class Divided(Block):
    def forward(self, h: Tensor, gate: Tensor) -> Tensor:
        return h + self.linear(h) / (2 + gate.abs())


class Halves(Block):
    """CogVideoX: two parts of one sequence have gates of their own."""

    def forward(self, h: Tensor, gate: Tensor) -> Tensor:
        out = self.linear(h)
        return h + torch.cat([gate * out[:, :2], -3 * gate * out[:, 2:]], dim=1)


class TwoStreams(Block):
    def forward(self, h: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        seen = nn.functional.scaled_dot_product_attention(h, h, h)
        first, second = h[:, :2], h[:, 2:]
        return first + gate * self.linear(seen[:, :2]), second + 2 * self.second(seen[:, 2:])


class Cast(Block):
    def forward(self, h: Tensor, gate: Tensor) -> Tensor:
        return (h.float() + self.linear(h).float() * gate).type_as(h)


class NormAfter(Block):
    def forward(self, h: Tensor, gate: Tensor) -> Tensor:
        return h + gate * self.norm(self.linear(h))


class NoGate(Block):
    def forward(self, h: Tensor, gate: Tensor) -> Tensor:
        return h + self.linear(h)


class Reshaped(Block):
    def forward(self, h: Tensor, gate: Tensor) -> Tensor:
        out = self.linear(h).reshape(2, 5, 2, 2) * gate.reshape(2, 1, 2, 2)
        return h + out.flatten(2)


def head_of(model: nn.Module, h: Tensor = H) -> tuple[Region, CutToBranch, list[Tensor], list[Tensor]]:
    """The only region with work: itself, its head, values for its cuts and for what the head reads."""
    graph = trace(model, h, GATE).graph
    regions, _ = find_regions(graph)
    (region,) = regions
    head = cut_to_branch(graph, region)
    generator = torch.Generator().manual_seed(2)
    cuts = [torch.randn(cut.shape, generator=generator).to(cut.dtype) for cut in region.cuts]
    known = {"gate": GATE, "h": h, **parameters_of(model)}
    others = [_value(graph, name, known) for name in head.others]
    return region, head, cuts, others


def _value(graph: fx.Graph, name: str, known: dict[str, Tensor]) -> Tensor:
    """What a node of the graph holds, given its inputs."""
    if name in known:
        return known[name]
    node = find_node(graph, name)
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: _value(graph, source.name, known))
    return node.target(*args, **kwargs)


@pytest.mark.parametrize("model", [Gate, GateAndShift, Divided, Halves, TwoStreams, Reshaped], ids=lambda m: m.__name__)
def test_the_weighted_change_of_the_cuts_is_the_change_of_the_branches(model: type[nn.Module]):
    _, head, cuts, others = head_of(model())
    weights = residual_weight(head, cuts, others)
    assert weights is not None
    assert [weight.shape for weight in weights] == [cut.shape for cut in cuts]
    changes = [torch.randn_like(cut) for cut in cuts]
    before = head.module(*cuts, *others)
    after = head.module(*(cut + change for cut, change in zip(cuts, changes, strict=True)), *others)
    moved = sum((b - a).square().sum() for a, b in zip(before, after, strict=True))
    weighted = sum((w * c.square()).sum() for w, c in zip(weights, changes, strict=True))
    torch.testing.assert_close(weighted, moved, rtol=1e-4, atol=1e-5)


def test_a_gate_weighs_with_its_square():
    _, head, cuts, others = head_of(Gate())
    (weight,) = residual_weight(head, cuts, others) or ()
    torch.testing.assert_close(weight, GATE.square().expand_as(H))


def test_a_cast_is_looked_through_and_the_weight_is_float32():
    _, head, cuts, others = head_of(Cast(torch.bfloat16), H.bfloat16())
    (weight,) = residual_weight(head, cuts, others) or ()
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, GATE.square().expand_as(H), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("model", [NormAfter, NoGate], ids=lambda m: m.__name__)
def test_none_where_the_change_is_taken_as_it_is(model: type[nn.Module]):
    _, head, cuts, others = head_of(model())
    assert residual_weight(head, cuts, others) is None


def test_gradients_may_be_disabled_around_it():
    _, head, cuts, others = head_of(Gate())
    with torch.no_grad():
        assert residual_weight(head, cuts, others) is not None
    with torch.inference_mode():
        weights = residual_weight(head, [cut.clone() for cut in cuts], others)
    assert weights is not None
