"""Rules for operators that move, select and join axes: one for each kind, which says how taking tokens commutes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from soda_compile.passes.selection import Place
from soda_compile.passes.sinking import Sinker, Unsinkable, aligned, arguments, shape_of, wrap
from soda_compile.torch_internals.size_expressions import slice_bounds

aten = torch.ops.aten


def view(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink through a view that keeps the token axis whole: it splits or merges other axes only."""
    source = arguments(node)[0]
    inner, outer = shape_of(source), shape_of(node)
    axis = next((axis for axis in _same_start(inner, outer, place.axis) if inner[axis] == outer[place.axis]), None)
    batch = next(_same_start(inner, outer, place.batch), None)
    samples = sinker.tokens.batch
    if axis is None:
        raise Unsinkable(f"the view {inner} to {outer} merges the token axis with another")
    if batch is None or inner[batch] % samples:
        raise Unsinkable(f"the view {inner} to {outer} splits the batch axis")
    outer[place.axis] = sinker.tokens.kept
    fresh = sinker.want(source, replace(place, axis=axis, batch=batch, repeat=max(1, inner[batch] // samples)))
    return sinker.call(aten.reshape.default, fresh, outer)


def _same_start(inner: Sequence[int], outer: Sequence[int], axis: int) -> Iterator[int]:
    """Yield the axes of ``inner`` with as many elements before them."""
    before = math.prod(outer[:axis])
    return (index for index in range(len(inner)) if math.prod(inner[:index]) == before)


def permute(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink through a reordering of axes, which moves the token axis."""
    source, *axes = arguments(node)
    rank = len(shape_of(node))
    order = list(range(rank))
    if node.target is aten.permute.default:
        order = [wrap(axis, rank) for axis in axes[0]]
    elif node.target is aten.transpose.int:
        one, two = (wrap(axis, rank) for axis in axes)
        order[one], order[two] = two, one
    else:
        order.reverse()  # aten.t
    fresh = sinker.want(source, place.moved(order[place.axis], order[place.batch]))
    return sinker.call(node.target, fresh, *axes)


def unsqueeze(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink through a new axis, which shifts those after it."""
    source, axis = arguments(node)
    new = wrap(axis, len(shape_of(node)))
    if new in (place.axis, place.batch):
        raise Unsinkable("the axis of samples or tokens is new here")
    fresh = sinker.want(source, place.moved(place.axis - (place.axis > new), place.batch - (place.batch > new)))
    return sinker.call(node.target, fresh, axis)


def expand(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink through a broadcast, which copies the token axis or makes it."""
    source = arguments(node)[0]
    sizes = shape_of(node)
    sizes[place.axis] = sinker.tokens.kept
    return sinker.call(node.target, aligned(sinker, source, place, len(sizes)), sizes)


def repeat(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink through copies side by side along other axes."""
    source, times = arguments(node)
    new = len(times) - len(shape_of(source))
    if times[place.axis] != 1 or times[place.batch] != 1 or min(place.axis, place.batch) < new:
        raise Unsinkable("samples or tokens are repeated here")
    return sinker.call(node.target, sinker.want(source, place.moved(place.axis - new, place.batch - new)), times)


def repeat_each(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink through copies of each entry along another axis."""
    source, times, *rest = arguments(node)
    axis = rest[0] if rest else None
    if isinstance(times, fx.Node) or axis is None or wrap(axis, len(shape_of(node))) in (place.axis, place.batch):
        raise Unsinkable("samples or tokens are repeated here")
    return sinker.call(node.target, sinker.want(source, place), times, axis)


def select(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink through the selection of one entry of another axis."""
    source, axis, entry = arguments(node)
    gone = wrap(axis, len(shape_of(source)))
    fresh = sinker.want(source, place.moved(place.axis + (place.axis >= gone), place.batch + (place.batch >= gone)))
    return sinker.call(node.target, fresh, gone, entry)


def slice_axis(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink through a range: one of another axis stays, one of tokens shifts the index."""
    defaults = (None, 0, None, None, 1)
    values: list[Any] = [*arguments(node), *defaults[len(node.args) :]]
    source, axis, start, stop, step = values
    axis, size = wrap(axis, len(shape_of(node))), shape_of(source)
    if axis == place.batch or (axis == place.axis and step != 1):
        raise Unsinkable("a slice takes some samples, or every so many tokens")
    if axis != place.axis:
        return sinker.call(node.target, sinker.want(source, place), axis, start, stop, step)
    first = slice_bounds(start, stop, size[axis])[0]
    return sinker.want(source, replace(place, offset=place.offset + first))


def cat(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink into tensors side by side, or of tensors of tokens one after the other into the one that holds them."""
    sources: Sequence[fx.Node] = arguments(node)[0]
    axis = wrap(arguments(node)[1] if len(arguments(node)) > 1 else 0, len(shape_of(node)))
    if axis == place.batch:
        raise Unsinkable("samples are joined here")
    if axis != place.axis:
        return sinker.call(node.target, [sinker.want(source, place) for source in sources], axis)
    start = 0
    for source in sources:
        size = shape_of(source)[axis]
        if start <= place.offset and place.offset + sinker.tokens.count <= start + size:
            return sinker.want(source, replace(place, offset=place.offset - start))
        start += size
    raise Unsinkable("token groups are put together here, and tokens of more than one are wanted")


def stack(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink through a new axis of tensors side by side."""
    sources: Sequence[fx.Node] = arguments(node)[0]
    new = wrap(arguments(node)[1] if len(arguments(node)) > 1 else 0, len(shape_of(node)))
    if new in (place.axis, place.batch):
        raise Unsinkable("samples or tokens are joined here")
    inner = place.moved(place.axis - (place.axis > new), place.batch - (place.batch > new))
    return sinker.call(node.target, [sinker.want(source, inner) for source in sources], new)


def item(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink through one part of a tensor that was split."""
    split, number = arguments(node)
    parts = split.meta["val"]
    source, *rest = arguments(split)
    if split.target is aten.unbind.int:
        axis = wrap(rest[0] if rest else 0, parts[0].ndim + 1)
        inner = place.moved(place.axis + (place.axis >= axis), place.batch + (place.batch >= axis))
        return sinker.call(aten.select.int, sinker.want(source, inner), axis, number)
    if split.target not in (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default):
        raise Unsinkable(f"no rule for a result of {split.target}")
    axis = wrap(rest[1] if len(rest) > 1 else 0, parts[0].ndim)
    start = sum(part.shape[axis] for part in parts[:number])
    if axis == place.batch:
        raise Unsinkable("samples are split here")
    if axis == place.axis:
        return sinker.want(source, replace(place, offset=place.offset + start))
    fresh = sinker.want(source, place)
    return sinker.call(aten.slice.Tensor, fresh, axis, start, start + parts[number].shape[axis])


def scatter_axis(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink through a write into a range of an axis, which is how item assignment looks in a functional graph."""
    base, source, *rest = arguments(node)
    rank = len(shape_of(node))
    axis = wrap(rest[0] if rest else 0, rank)
    if axis == place.batch:
        raise Unsinkable("it writes some samples")
    if axis == place.axis:
        return _written_tokens(sinker, node, place)
    inner = place
    if len(shape_of(source)) < rank:  # select_scatter
        inner = place.moved(place.axis - (place.axis > axis), place.batch - (place.batch > axis))
    return sinker.call(node.target, sinker.want(base, place), sinker.want(source, inner), *rest)


def _written_tokens(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink into what is written, for tokens that are all in its range, or into the base if all are outside."""
    defaults = (None, None, 0, None, None, 1)
    values: list[Any] = [*arguments(node), *defaults[len(node.args) :]]
    base, source, _, start, stop, step = values
    count = sinker.tokens.count
    if node.target is aten.slice_scatter.default and (step or 1) == 1:
        first, last = slice_bounds(start, stop, shape_of(base)[place.axis])
        if first <= place.offset and place.offset + count <= last:
            return sinker.want(source, replace(place, offset=place.offset - first))
        if place.offset + count <= first or last <= place.offset:
            return sinker.want(base, place)
    raise Unsinkable("it writes some of the tokens")
