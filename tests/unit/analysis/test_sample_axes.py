"""The axis that counts samples, followed through operators and compared with what each sample's inputs change."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tracing import graph_of

from soda_compile.analysis.sample_axes import region_samples
from soda_compile.analysis.sample_rules import LostSamples, SampleAxis, Samples, samples_after
from soda_compile.ir.graphs import results_of
from soda_compile.measure.inspection import inspect

SAMPLES, TOKENS, WIDTH = 2, 6, 4
WEIGHT, TABLE = torch.randn(WIDTH, WIDTH), torch.randn(TOKENS, WIDTH)

FOLLOWED: dict[str, Callable[[Tensor], Tensor]] = {
    "elementwise": lambda x: F.silu(x) * 2,
    "a table of positions": lambda x: x + TABLE,
    "tokens first": lambda x: x.transpose(0, 1),
    "tokens first and back": lambda x: x.transpose(0, 1).relu().transpose(0, 1),
    "samples last": lambda x: x.permute(1, 2, 0),
    "tokens and samples folded": lambda x: x.transpose(0, 1).reshape(TOKENS * SAMPLES, WIDTH),
    "samples and tokens folded": lambda x: x.reshape(SAMPLES * TOKENS, WIDTH),
    "frames": lambda x: x.reshape(SAMPLES * 3, TOKENS // 3, WIDTH),
    "samples between tokens": lambda x: x.reshape(SAMPLES, 3, 2, WIDTH).transpose(0, 1).reshape(3 * SAMPLES * 2, WIDTH),
    "unfolded again": lambda x: x.reshape(SAMPLES * TOKENS, WIDTH).tanh().view(SAMPLES, 3, 2, WIDTH),
    "linear": lambda x: F.linear(x.transpose(0, 1), WEIGHT),
    "matrix product": lambda x: x.transpose(0, 1) @ WEIGHT,
    "batched product": lambda x: torch.bmm(x, x.transpose(1, 2)),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "attention of a device": lambda x: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        x[:, None], x[:, None], x[:, None]
    )[0],
    "softmax": lambda x: x.transpose(0, 1).softmax(-1),
    "layer norm": lambda x: F.layer_norm(x.transpose(0, 1), (WIDTH,)),
    "convolution": lambda x: F.conv1d(x.transpose(1, 2), WEIGHT[:, :, None]),
    "mean over tokens": lambda x: x.transpose(0, 1).mean(0),
    "part of the features": lambda x: x.transpose(0, 1).chunk(2, -1)[1],
    "part of the tokens": lambda x: x[:, 2:4],
    "one token": lambda x: x[:, 0],
    "class token": lambda x: torch.cat([TABLE[:1].expand(SAMPLES, 1, WIDTH), x], 1),
    "repeated inside": lambda x: x.repeat_interleave(3, 0),
    "repeated outside": lambda x: x.repeat(3, 1, 1),
    "expanded": lambda x: x[:, None].expand(SAMPLES, 3, TOKENS, WIDTH),
    "einsum": lambda x: torch.einsum("bnd,ed->nbe", x, WEIGHT),
    "where": lambda x: torch.where(TABLE > 0, x, 0.0),
    "stack": lambda x: torch.stack([x, x + 1], 1),
}
LOST: dict[str, Callable[[Tensor], Tensor]] = {
    "mean over samples": lambda x: x.mean(0) + TABLE,
    "one sample": lambda x: x[0].sin(),
    "samples beside each other": lambda x: torch.cat([x, x.flip(0)], 0),
    "two axes of samples": lambda x: x[:, None] * x[None],
    "products of samples": lambda x: x.permute(1, 2, 0) @ x.permute(1, 0, 2),
}


def follow(function: Callable[[Tensor], Tensor], x: Tensor) -> Samples:
    """What the rules find for a function's result."""
    graph = graph_of(function, x).graph
    found: dict = {}
    for node in graph.nodes:
        own = node.op == "placeholder" and tuple(node.meta["val"].shape) == tuple(x.shape)
        if node.op != "output":
            found[node] = SampleAxis(0, 1, SAMPLES, 1) if own else samples_after(node, found)
    return found[results_of(graph)[0]]


@pytest.mark.parametrize("name", FOLLOWED)
def test_each_sample_is_where_its_inputs_change_the_value(name: str):
    function, x = FOLLOWED[name], torch.randn(SAMPLES, TOKENS, WIDTH)
    axis = follow(function, x)
    assert isinstance(axis, SampleAxis)
    value = function(x)
    for sample in range(SAMPLES):
        other = x.clone()
        other[sample] += 1 + torch.rand(TOKENS, WIDTH)
        changed = (function(other) != value).to(torch.float32)
        mine = torch.zeros(axis.outer, SAMPLES, axis.inner)
        mine[:, sample] = 1
        shape = [1] * value.ndim
        shape[axis.axis] = axis.size
        outside = changed * (1 - mine.flatten().reshape(shape))
        assert changed.any()
        assert not outside.any()


@pytest.mark.parametrize("name", FOLLOWED)
def test_samples_come_first(name: str):
    function, x = FOLLOWED[name], torch.randn(SAMPLES, TOKENS, WIDTH)
    axis = follow(function, x)
    assert isinstance(axis, SampleAxis)
    first = axis.bring_first(function(x))
    own = [function(torch.stack([x[sample]] * SAMPLES)) for sample in range(SAMPLES)]  # each the only sample
    for sample, alone in enumerate(own):
        expected = axis.bring_first(alone).reshape(SAMPLES, -1)[sample]
        torch.testing.assert_close(first.reshape(SAMPLES, -1)[sample], expected)


@pytest.mark.parametrize("name", LOST)
def test_mixed_samples_are_lost(name: str):
    assert isinstance(follow(LOST[name], torch.randn(SAMPLES, TOKENS, WIDTH)), LostSamples)


def test_an_axis_says_where_it_is():
    axis = SampleAxis(1, 3, 2, 1)
    assert str(axis) == "axis 1 (3 x 2 x 1)"
    assert str(replace(axis, outer=1)) == "axis 1"


class Encoder(nn.Module):
    """One residual branch, in any order of tokens and samples."""

    def __init__(self, order: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.order, self.back = order, back or order
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.order(x)
        return self.back(h + self.linear(h))


@pytest.mark.parametrize(
    ("order", "samples", "axis", "fault"),
    [
        (lambda x: x + 0, 2, SampleAxis(0, 1, 2, 1), ""),
        (lambda x: x.transpose(0, 1), 2, SampleAxis(1, 1, 2, 1), "its samples are on axis 1, not on axis 0"),
        (
            lambda x: x.transpose(0, 1).reshape(1, TOKENS * SAMPLES, WIDTH),
            2,
            SampleAxis(1, TOKENS, 2, 1),
            f"its samples are on axis 1 ({TOKENS} x 2 x 1), not on axis 0",
        ),
        (lambda x: x + x.flip(0).mean(0), 2, SampleAxis(0, 1, 2, 1), ""),
        (lambda x: x.mean(0), 1, None, "cannot be told apart after mean"),
        (lambda x: x.sum(0, keepdim=True) + TABLE, 1, None, "cannot be told apart after sum"),
    ],
    ids=["samples first", "tokens first", "folded", "samples that see each other", "mixed", "mixed, kept axis"],
)
def test_regions_know_their_samples(
    order: Callable[[Tensor], Tensor], samples: int, axis: SampleAxis | None, fault: str
):
    (found,) = region_samples(inspect(Encoder(order, lambda x: x), torch.randn(SAMPLES, TOKENS, WIDTH)))
    assert (found.samples, found.cuts) == (samples, (axis,))
    said = found.fault or found.reason
    assert fault in said
    assert bool(fault) == bool(said)


class Positions(Encoder):
    """Reads a table of positions before anything else."""

    def forward(self, table: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x + table[:, 0] + t[:, None, None])


def test_tables_that_come_first_do_not_count_samples():
    inputs = (torch.randn(TOKENS, 1, WIDTH), torch.randn(SAMPLES, TOKENS, WIDTH), torch.ones(SAMPLES))
    (found,) = region_samples(inspect(Positions(lambda x: x.transpose(0, 1)), *inputs))
    assert (found.samples, found.cuts) == (SAMPLES, (SampleAxis(1, 1, SAMPLES, 1),))


def test_one_sample_has_every_layout():
    """With one sample nothing can be folded wrongly."""
    (found,) = region_samples(inspect(Encoder(lambda x: x.transpose(0, 1)), torch.randn(1, TOKENS, WIDTH)))
    assert (found.samples, found.cuts, found.fault) == (1, (None,), "")
