"""Takes a tensor as a whole where its parts are put together again as they were."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from soda_compile.ir.aten_operators import SPLITS
from soda_compile.ir.structure import Note
from soda_compile.passes.base import Pass, PassResult
from soda_compile.torch_internals.size_expressions import comparable, layout_of, slice_bounds, with_values

aten = torch.ops.aten


@dataclass(frozen=True)
class RejoinSlices(Pass):
    """Replaces the concatenation of all parts of a tensor, in their order, by the tensor.

    Single-stream blocks take the tokens of text and image apart, and begin by joining them. From block to block,
    before::

        blocks.0: %x     : [B, T + N, D] = add(...)
                  %text  : [B, T, D] = slice(%x, 1, 0, T)
                  %image : [B, N, D] = slice(%x, 1, T, T + N)
        blocks.1: %both  : [B, T + N, D] = cat([%text, %image], 1)

    After; the block hands over one tensor, and nothing is copied::

        blocks.0: %x     : [B, T + N, D] = add(...)
        blocks.1: ... reads %x

    Valid because the parts are views that nothing writes to. Inductor does not do this: it takes a cat for a new
    tensor, which also keeps it from fusing the residual adds of several blocks that are reused. Skipped where the
    tensor has another layout than the concatenation, which views may rely on.
    """

    name: ClassVar[str] = "rejoin_slices"
    optional: ClassVar[bool] = True

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrite ``graph`` in place."""
        changed: list[str] = []
        skipped: list[Note] = []
        for node in list(graph.find_nodes(op="call_function", target=aten.cat.default)):
            source = _whole(node)
            if source is None:
                continue
            if comparable(layout_of(source.meta["val"])) != comparable(layout_of(node.meta["val"])):
                skipped.append(Note(node.name, f"{source.name} has another layout"))
                continue
            node.replace_all_uses_with(source)
            changed.append(node.name)
            _erase_unused(graph, node)
        return PassResult(tuple(changed), tuple(skipped))


def _whole(cat: fx.Node) -> fx.Node | None:
    """Return the tensor of which a concatenation holds all parts in order; None where it does not."""
    parts: Any = cat.args[0]
    axis = _axis(cat, cat.args[1] if len(cat.args) > 1 else 0)
    if len(parts) < 2:
        return None
    source = _part_of_split(parts, axis) or _part_of_slices(parts, axis)
    same = source is not None and comparable(source.meta["val"].shape) == comparable(cat.meta["val"].shape)
    return source if same else None


def _part_of_split(parts: Sequence[fx.Node], axis: int) -> fx.Node | None:
    if any(part.target is not operator.getitem for part in parts):
        return None
    split: Any = parts[0].args[0]
    if split.target not in SPLITS or [part.args for part in parts] != [(split, at) for at in range(len(parts))]:
        return None
    place = SPLITS[split.target]
    source: fx.Node = split.args[0]
    return source if _axis(source, split.args[place] if len(split.args) > place else 0) == axis else None


def _part_of_slices(parts: Sequence[fx.Node], axis: int) -> fx.Node | None:
    if any(part.target is not aten.slice.Tensor for part in parts) or len({part.args[0] for part in parts}) > 1:
        return None
    source: Any = parts[0].args[0]
    size = source.meta["val"].shape[axis]
    end: Any = 0
    for part in parts:
        dim, first, last, step = with_values((*part.args[1:], *(0, None, None, 1)[len(part.args) - 1 :]))
        start, stop = slice_bounds(first, last, size)
        if _axis(source, dim) != axis or step != 1 or comparable([start]) != comparable([end]):
            return None
        end = stop
    return source if comparable([end]) == comparable([size]) else None


def _axis(node: fx.Node, axis: Any) -> int:
    return int(axis) % int(node.meta["val"].ndim)


def _erase_unused(graph: fx.Graph, node: fx.Node) -> None:
    """Erase a node, and the parts and the split that only it has read."""
    sources = node.all_input_nodes if node.op == "call_function" else []
    if node.users or node.op != "call_function":
        return
    graph.erase_node(node)
    for source in sources:
        if source.target in (*SPLITS, aten.slice.Tensor, operator.getitem):
            _erase_unused(graph, source)
