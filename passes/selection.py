"""Selections of the tokens of a tensor, and taking them."""

from collections.abc import Hashable
from dataclasses import dataclass, replace

import torch
from torch import fx

from soda_compile.ir.aten_operators import tensor_of
from soda_compile.ir.graphs import add_call
from soda_compile.torch_internals.size_expressions import expression

aten = torch.ops.aten


@dataclass(frozen=True)
class Tokens:
    """The wanted tokens of one token group.

    Attributes:
        count: N, tokens of the group.
        batch: B, samples of the group.
        index: int64 [B, k], the tokens wanted in each sample; None for all of them.
    """

    count: int
    batch: int
    index: fx.Node | None

    @property
    def kept(self) -> int:
        """Return the number of tokens that are wanted in each sample."""
        return self.count if self.index is None else tensor_of(self.index).shape[1]


@dataclass(frozen=True)
class Place:
    """Place of a token group's tokens in a tensor.

    Attributes:
        axis: The axis that runs over tokens. It may hold other tokens too.
        offset: Position on the axis at which the group's tokens begin.
        batch: The axis that runs over samples, or holds 1 where samples are alike.
        repeat: Number of neighbours on the batch axis of one sample (heads that were merged into the batch).
    """

    axis: int
    offset: int = 0
    batch: int = 0
    repeat: int = 1

    @property
    def key(self) -> Hashable:
        """Return what tells it from others; its numbers may be symbolic."""
        return self.axis, expression(self.offset), self.batch, expression(self.repeat)

    def moved(self, axis: int, batch: int) -> "Place":
        """Return the same tokens where the axes have other numbers."""
        return replace(self, axis=axis, batch=batch)


def take(graph: fx.Graph, node: fx.Node, tokens: Tokens, place: Place) -> fx.Node:
    """Return the wanted tokens of ``node``: a slice or a gather along ``place.axis``."""
    shape = list(tensor_of(node).shape)
    if tokens.index is None:
        if shape[place.axis] == tokens.count:
            return node
        return add_call(graph, aten.slice.Tensor, node, place.axis, place.offset, place.offset + tokens.count)
    samples = tokens.batch * place.repeat
    if shape[place.batch] == 1 and samples != 1:
        shape[place.batch] = samples
        node = add_call(graph, aten.expand.default, node, list(shape))
    index = _aligned(graph, tokens, place, len(shape))
    shape[place.axis] = tokens.kept
    return add_call(graph, aten.gather.default, node, place.axis, add_call(graph, aten.expand.default, index, shape))


def _aligned(graph: fx.Graph, tokens: Tokens, place: Place, rank: int) -> fx.Node:
    """Return the index with one axis for each axis of the tensor, of size 1 but for the samples and the tokens."""
    index = tokens.index
    assert index is not None
    samples = tokens.batch * place.repeat
    if place.repeat > 1:
        index = add_call(graph, aten.unsqueeze.default, index, 1)
        index = add_call(graph, aten.expand.default, index, [tokens.batch, place.repeat, tokens.kept])
        index = add_call(graph, aten.reshape.default, index, [samples, tokens.kept])
    if place.offset:
        index = add_call(graph, aten.add.Tensor, index, place.offset)
    if place.batch > place.axis:
        index = add_call(graph, aten.transpose.int, index, 0, 1)
    shape = [1] * rank
    shape[place.batch], shape[place.axis] = samples, tokens.kept
    return add_call(graph, aten.reshape.default, index, shape)
