"""Computes only those output features of a linear that are still used."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from soda_compile.passes.base import PassResult
from soda_compile.structure import Note

aten = torch.ops.aten


@dataclass(frozen=True)
class NarrowLinear:
    """Slices the weight of a linear of which only some chunks are read.

    An adaLN modulation computes shift, scale and gate at once; when a reuse leaves only the gate, two thirds of it
    are wasted. Before, with ``%shift`` and ``%scale`` already dead::

        %all  : [B, 3D] = linear(%x, %w : [3D, K], %b : [3D])
        %gate : [B, D]  = getitem(split(%all, D, -1), 2)

    After::

        %w2   : [D, K] = slice(%w, 0, 2D, 3D)
        %b2   : [D]    = slice(%b, 0, 2D, 3D)
        %gate : [B, D] = linear(%x, %w2, %b2)

    Valid because each output feature of a linear depends on its own row of the weight alone; the slices are views.
    Skipped when every chunk is used, or when anything but chunks along the feature axis reads the output.
    """

    name: str = "narrow_linear"

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrites ``graph`` in place; run dead-code elimination before and after it."""
        changed: list[str] = []
        skipped: list[Note] = []
        for node in list(graph.find_nodes(op="call_function", target=aten.linear.default)):
            chunks = [chunk for user in node.users for chunk in _chunks(user)]
            if not chunks:
                continue  # read as a whole: nothing to narrow
            width = node.meta["val"].shape[-1]
            if len(chunks) < sum(max(len(user.users), 1) for user in node.users):
                skipped.append(Note(node.name, "something else than chunks along the feature axis reads it"))
            elif sum(stop - start for start, stop in {(start, stop) for _, start, stop in chunks}) >= width:
                skipped.append(Note(node.name, "all of its output is used"))
            else:
                for chunk, start, stop in chunks:
                    _replace(graph, node, chunk, start, stop)
                changed.append(f"{node.name}: {len(chunks)} of {_count(node, chunks)} chunks")
        return PassResult(tuple(changed), tuple(skipped))


def _chunks(user: fx.Node) -> list[tuple[fx.Node, int, int]]:
    """The feature ranges that ``user``, a reader of the linear, takes: (node with the range, start, stop)."""
    source = user.args[0]
    if not isinstance(source, fx.Node) or user.target not in _SPLITS:
        return []
    rank, width = source.meta["val"].ndim, source.meta["val"].shape[-1]
    axis = user.args[_SPLITS[user.target]] if len(user.args) > _SPLITS[user.target] else 0
    if axis not in (-1, rank - 1):
        return []
    if user.target is aten.slice.Tensor:
        start, stop, step = (*user.args[2:], *(0, width, 1)[len(user.args) - 2 :])
        return [(user, _bound(start, 0, width), _bound(stop, width, width))] if step == 1 else []
    bounds = [0]
    for value in user.meta["val"]:
        bounds.append(bounds[-1] + value.shape[-1])
    return [
        (item, bounds[item.args[1]], bounds[item.args[1] + 1]) for item in user.users if item.target is operator.getitem
    ]


# Operators that take ranges of an axis, and where their arguments name the axis.
_SPLITS = {
    aten.split.Tensor: 2,
    aten.split_with_sizes.default: 2,
    aten.chunk.default: 2,
    aten.slice.Tensor: 1,
}


def _bound(value: int | None, default: int, width: int) -> int:
    if value is None:
        return default
    return min(value + width if value < 0 else value, width)


def _count(node: fx.Node, chunks: list[tuple[fx.Node, int, int]]) -> int:
    return int(node.meta["val"].shape[-1] // (chunks[0][2] - chunks[0][1]))


def _replace(graph: fx.Graph, linear: fx.Node, chunk: fx.Node, start: int, stop: int) -> None:
    source, weight, *bias = linear.args
    with graph.inserting_before(chunk):
        rows = [
            graph.call_function(aten.slice.Tensor, (value, 0, start, stop))
            for value in (weight, *bias)
            if value is not None
        ]
        narrow = graph.call_function(aten.linear.default, (source, *rows))
    for node, origin in ((narrow, chunk), *((row, value) for row, value in zip(rows, (weight, *bias), strict=False))):
        node.meta = {"val": origin.meta["val"] if node is narrow else origin.meta["val"][start:stop]}  # type: ignore[union-attr]
    narrow.meta["paths"] = linear.meta.get("paths", ())
    chunk.replace_all_uses_with(narrow)
