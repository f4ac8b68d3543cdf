"""Computes only those output features of a linear that are still used."""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from soda_compile.ir.aten_operators import SPLITS
from soda_compile.ir.graphs import add_call
from soda_compile.ir.meta import meta_of
from soda_compile.ir.structure import Note
from soda_compile.passes.base import Pass, PassResult

aten = torch.ops.aten


@dataclass(frozen=True)
class NarrowLinear(Pass):
    """Slices the weight of a linear of which only some chunks are read.

    An adaLN modulation computes shift, scale and gate at once; when a reuse leaves only the gate, two thirds of it
    are wasted. Before, with ``%shift`` and ``%scale`` already dead::

        %all  : [B, 3D] = linear(%x, %w : [3D, K], %b : [3D])
        %gate : [B, D]  = getitem(split(%all, D, -1), 2)

    After::

        %w2   : [D, K] = slice(%w, 0, 2D, 3D)
        %b2   : [D]    = slice(%b, 0, 2D, 3D)
        %gate : [B, D] = linear(%x, %w2, %b2)

    Chunks that touch stay one linear and are sliced from it; casts and new axes between linear and chunks are done
    on the narrow tensor. Valid because each output feature of a linear depends on its own row of the weight alone;
    the slices are views. Skipped when all features are used, or when anything but such chunks reads the output.
    """

    name: ClassVar[str] = "narrow_linear"
    optional: ClassVar[bool] = True

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrite ``graph`` in place; run dead-code elimination before and after it."""
        changed: list[str] = []
        skipped: list[Note] = []
        for node in list(graph.find_nodes(op="call_function", target=aten.linear.default)):
            reads = [read for read in _reads(node) if read is not None]
            if not reads:
                continue  # read as a whole: nothing to narrow
            width = node.meta["val"].shape[-1]
            runs = _runs(reads)
            kept = sum(run[0].stop - run[0].start for run in runs)
            if None in _reads(node):
                skipped.append(Note(node.name, "something else than chunks along the feature axis reads it"))
            elif kept == width:
                skipped.append(Note(node.name, "all of its output is used"))
            else:
                for features, members in runs:
                    _replace(graph, node, features, members)
                changed.append(f"{node.name}: {kept} of {width} output features")
        return PassResult(tuple(changed), tuple(skipped))


@dataclass(frozen=True)
class _Read:
    """A node that holds the output features ``start`` to ``stop`` of a linear, and what was done to them before."""

    node: fx.Node
    start: int
    stop: int
    between: tuple[fx.Node, ...]


# Operators that take ranges of an axis, and where their arguments name the axis (the first one if they do not).
_SPLITS = {**SPLITS, aten.slice.Tensor: 1}
# Operators that treat each feature alike, so that they commute with taking chunks.
_BETWEEN = frozenset({aten._to_copy.default, aten.clone.default, aten.alias.default, aten.unsqueeze.default})


def _reads(node: fx.Node, between: tuple[fx.Node, ...] = ()) -> Iterator[_Read | None]:
    """Yield the readers of a linear's output, through ``between``; None for one that takes more than ranges."""
    for user in node.users:
        if user.target in _BETWEEN and user.meta["val"].shape[-1] == node.meta["val"].shape[-1]:
            yield from _reads(user, (*between, user))
        elif ranges := list(_ranges(node, user)):
            yield from (_Read(part, start, stop, between) for part, start, stop in ranges)
        else:
            yield None


def _ranges(source: fx.Node, user: fx.Node) -> Iterator[tuple[fx.Node, int, int]]:
    """Yield the ranges of the last axis of ``source`` that ``user`` takes; nothing if it does something else."""
    if user.target not in _SPLITS:
        return
    position = _SPLITS[user.target]
    axis = user.args[position] if len(user.args) > position else 0
    rank, width = source.meta["val"].ndim, source.meta["val"].shape[-1]
    if axis not in (-1, rank - 1):
        return
    if user.target is aten.slice.Tensor:
        first, last, step = (*user.args[2:], None, None, None)[:3]
        start, stop, _ = slice(first, last).indices(width)
        if step in (None, 1):
            yield user, start, max(start, stop)
        return
    bounds = [0]
    for value in user.meta["val"]:
        bounds.append(bounds[-1] + value.shape[-1])
    for item in user.users:
        index = item.args[1]
        if item.target is operator.getitem and isinstance(index, int):
            yield item, bounds[index], bounds[index + 1]


def _runs(reads: Sequence[_Read]) -> list[tuple[range, list[_Read]]]:
    """Join reads whose features touch or overlap; return them with the features they span, in order."""
    runs: list[tuple[range, list[_Read]]] = []
    for read in sorted(reads, key=lambda read: (read.start, read.stop)):
        if runs and read.start <= runs[-1][0].stop:
            span, members = runs.pop()
            runs.append((range(span.start, max(span.stop, read.stop)), [*members, read]))
        else:
            runs.append((range(read.start, read.stop), [read]))
    return runs


def _replace(graph: fx.Graph, linear: fx.Node, features: range, reads: Sequence[_Read]) -> None:
    """Give the reads from a linear of these features alone, put where the whole one stands."""
    source, *weights = linear.args
    with graph.inserting_before(linear):
        rows = [
            add_call(graph, aten.slice.Tensor, weight, 0, features.start, features.stop)
            for weight in weights
            if weight is not None
        ]
        narrow = add_call(graph, aten.linear.default, source, *rows)
        narrow.meta["paths"] = meta_of(linear).get("paths", ())
        wholes: dict[tuple[fx.Node, ...], fx.Node] = {}
        for read in reads:
            if read.between not in wholes:
                wholes[read.between] = narrow
                for step in read.between:
                    wholes[read.between] = add_call(
                        graph, step.target, wholes[read.between], *step.args[1:], **step.kwargs
                    )
            value = wholes[read.between]
            if range(read.start, read.stop) != features:
                start, stop = read.start - features.start, read.stop - features.start
                value = add_call(graph, aten.slice.Tensor, value, value.meta["val"].ndim - 1, start, stop)
            read.node.replace_all_uses_with(value)
