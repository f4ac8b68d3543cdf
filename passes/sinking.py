"""The interface of rules for sinking gathers, and helpers that they share."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import fx

from soda_compile.ir.aten_operators import tensor_of
from soda_compile.passes.selection import Place, Tokens
from soda_compile.torch_internals.size_expressions import SizeArgument

aten = torch.ops.aten


class Unsinkable(Exception):
    """The reason why the tokens must be taken here."""


class Sinker(Protocol):
    """The requests that a rule can make."""

    tokens: Tokens

    def want(self, node: fx.Node, place: Place) -> fx.Node:
        """Return the wanted tokens of a node."""

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call to the graph."""

    def keep_whole(self, nodes: Sequence[fx.Node]) -> None:
        """Note that these nodes are needed for all tokens, whatever is wanted of others."""


Rule = Callable[[Sinker, fx.Node, Place], fx.Node]


def shape_of(node: Any) -> list[int]:
    """Return the sizes of the node's tensor."""
    return list(tensor_of(node).shape)


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """Return the node's positional arguments, symbolic numbers as such."""
    found: tuple[Any, ...] = fx.node.map_aggregate(
        node.args, lambda leaf: leaf.value if isinstance(leaf, SizeArgument) else leaf
    )
    return found


def wrap(axis: int, rank: int) -> int:
    """Return an axis counted from the front."""
    return axis + rank if axis < 0 else axis


def aligned(sinker: Sinker, argument: fx.Node, place: Place, rank: int) -> fx.Node:
    """Return the wanted tokens of an argument that is broadcast to ``rank`` axes, ``place`` being meant in those."""
    shape = shape_of(argument)
    missing = rank - len(shape)
    if place.axis < missing or shape[place.axis - missing] == 1:
        return argument
    if place.batch < missing:  # a table without a batch axis: each sample takes its own tokens of it
        argument = sinker.call(aten.reshape.default, argument, [1] * missing + shape)
        missing = 0
    return sinker.want(argument, place.moved(place.axis - missing, place.batch - missing))
