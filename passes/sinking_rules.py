"""How taking tokens commutes with each operator: one short rule for each kind, and one table.

A rule is asked for some tokens of a node's output. It asks the sinker for those tokens of the node's arguments and
gives the node's operator on them, or raises ``Unsinkable`` with the reason why it can't.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import fx

from soda_compile.operators import tensor_of
from soda_compile.passes.selection import Place, Tokens

aten = torch.ops.aten


class Unsinkable(Exception):
    """Why the tokens must be taken here."""


class Sinker(Protocol):
    """What a rule can ask for."""

    tokens: Tokens

    def want(self, node: fx.Node, place: Place) -> fx.Node:
        """The wanted tokens of a node."""

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Adds a call to the graph."""

    def keep_whole(self, nodes: Sequence[fx.Node]) -> None:
        """Says that these nodes are needed for all tokens, whatever is wanted of others."""


Rule = Callable[[Sinker, fx.Node, Place], fx.Node]


def shape_of(node: Any) -> list[int]:
    """Sizes of the node's tensor."""
    return list(tensor_of(node).shape)


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """The node's positional arguments."""
    return node.args


def wrap(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    return axis + rank if axis < 0 else axis


def elementwise(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Each element depends on the elements at its own position; what is broadcast over tokens stays."""
    rank = len(shape_of(node))

    def pick(argument: fx.Node) -> fx.Node:
        if not isinstance(argument.meta.get("val"), torch.Tensor):
            return argument
        return aligned(sinker, argument, place, rank)

    args, kwargs = fx.map_arg((node.args, node.kwargs), pick)
    return sinker.call(node.target, *args, **kwargs)


def aligned(sinker: Sinker, argument: fx.Node, place: Place, rank: int) -> fx.Node:
    """The wanted tokens of an argument that is broadcast to ``rank`` axes, ``place`` being meant in those."""
    shape = shape_of(argument)
    missing = rank - len(shape)
    if place.axis < missing or shape[place.axis - missing] == 1:
        return argument
    if place.batch < missing:  # a table without rows: each row takes its own tokens of it
        argument = sinker.call(aten.reshape.default, argument, [1] * missing + shape)
        missing = 0
    return sinker.want(argument, place.moved(place.axis - missing, place.batch - missing))


def linear(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """A linear works on each token by itself."""
    if place.axis == len(shape_of(node)) - 1:
        raise Unsinkable("the tokens are the output features of a linear")
    source, *rest = arguments(node)
    return sinker.call(node.target, sinker.want(source, place), *rest)


def product(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Rows of a matrix product depend on the same rows of the left factor."""
    left, right = arguments(node)[:2]
    if place.axis != len(shape_of(node)) - 2 or len(shape_of(left)) != len(shape_of(node)):
        raise Unsinkable("the tokens are not the rows of a matrix product")
    return sinker.call(node.target, sinker.want(left, place), right)


def product_with_bias(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """As ``product``; the bias is broadcast over the rows or has as many."""
    bias, left, right = arguments(node)[:3]
    rank = len(shape_of(node))
    if place.axis != rank - 2:
        raise Unsinkable("the tokens are not the rows of a matrix product")
    return sinker.call(
        node.target,
        aligned(sinker, bias, place, rank),
        sinker.want(left, place),
        right,
        **node.kwargs,
    )


def attention(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Each query attends by itself; keys and values come from all tokens. A mask may have an axis of queries."""
    query, key, value, *rest = arguments(node)
    rank = len(shape_of(node))
    if place.axis != rank - 2:
        raise Unsinkable("the tokens are not the queries of an attention")
    options = dict(zip(("attn_mask", "dropout_p", "is_causal"), rest, strict=False)) | node.kwargs
    if options.get("is_causal"):
        raise Unsinkable("a causal attention counts its queries")
    sinker.keep_whole([key, value])
    mask = options.pop("attn_mask", None)
    if isinstance(mask, fx.Node):
        mask = aligned(sinker, mask, place, rank)
    options = {name: option for name, option in options.items() if name not in ("dropout_p", "is_causal")}
    return sinker.call(
        node.target,
        sinker.want(query, place),
        key,
        value,
        mask,
        options.pop("dropout_p", 0.0),
        False,
        **options,
    )


def norm_over_features(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """A norm over the last axes treats each token alike."""
    source, normalized, *rest = arguments(node)
    if place.axis >= len(shape_of(node)) - len(normalized):
        raise Unsinkable("the norm runs over tokens")
    return sinker.call(node.target, sinker.want(source, place), normalized, *rest, **node.kwargs)


def along_axis(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """An operator along one other axis (softmax, cumulative sum) works on each token by itself."""
    source, axis, *rest = arguments(node)
    if wrap(axis, len(shape_of(node))) == place.axis:
        raise Unsinkable("it runs over tokens")
    return sinker.call(node.target, sinker.want(source, place), axis, *rest, **node.kwargs)


def reduction(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """A mean, sum, variance or norm over features is one number for each token."""
    source = arguments(node)[0]
    rank = len(shape_of(source))
    position = 2 if node.target is aten.linalg_vector_norm.default else 1
    axes = arguments(node)[position] if len(arguments(node)) > position else None
    if not axes:
        raise Unsinkable("it reduces over all axes")
    reduced = {wrap(axis, rank) for axis in ([axes] if isinstance(axes, int) else axes)}
    kept = list(range(rank)) if len(shape_of(node)) == rank else [axis for axis in range(rank) if axis not in reduced]
    inner = place.moved(kept[place.axis], kept[place.batch])
    if reduced & {inner.axis, inner.batch}:
        raise Unsinkable("it reduces over tokens")
    return sinker.call(node.target, sinker.want(source, inner), *arguments(node)[1:], **node.kwargs)


def view(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """A view that keeps the token axis whole splits or merges other axes only."""
    source = arguments(node)[0]
    inner, outer = shape_of(source), shape_of(node)
    axis = _same_axis(inner, outer, place.axis)
    batch = _same_start(inner, outer, place.batch)
    rows = sinker.tokens.batch
    if axis is None:
        raise Unsinkable(f"the view {inner} to {outer} merges the token axis with another")
    if batch is None or inner[batch] % rows:
        raise Unsinkable(f"the view {inner} to {outer} splits the batch axis")
    outer[place.axis] = sinker.tokens.kept
    fresh = sinker.want(source, replace(place, axis=axis, batch=batch, repeat=max(1, inner[batch] // rows)))
    return sinker.call(aten.reshape.default, fresh, outer)


def _same_axis(inner: Sequence[int], outer: Sequence[int], axis: int) -> int | None:
    """The axis of ``inner`` with the same size and as many elements before it."""
    before = math.prod(outer[:axis])
    for candidate, size in enumerate(inner):
        if size == outer[axis] and math.prod(inner[:candidate]) == before:
            return candidate
    return None


def _same_start(inner: Sequence[int], outer: Sequence[int], axis: int) -> int | None:
    """The first axis of ``inner`` with as many elements before it."""
    before = math.prod(outer[:axis])
    return next((index for index in range(len(inner)) if math.prod(inner[:index]) == before), None)


def permute(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Reordering axes moves the token axis."""
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
    """A new axis shifts those after it."""
    source, axis = arguments(node)
    new = wrap(axis, len(shape_of(node)))
    if new in (place.axis, place.batch):
        raise Unsinkable("the axis of rows or tokens is new here")
    fresh = sinker.want(source, place.moved(place.axis - (place.axis > new), place.batch - (place.batch > new)))
    return sinker.call(node.target, fresh, axis)


def expand(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Broadcasting copies the token axis or makes it."""
    source = arguments(node)[0]
    sizes = shape_of(node)
    sizes[place.axis] = sinker.tokens.kept
    return sinker.call(node.target, aligned(sinker, source, place, len(sizes)), sizes)


def repeat(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Copies side by side along other axes."""
    source, times = arguments(node)
    new = len(times) - len(shape_of(source))
    if times[place.axis] != 1 or times[place.batch] != 1 or min(place.axis, place.batch) < new:
        raise Unsinkable("rows or tokens are repeated here")
    return sinker.call(node.target, sinker.want(source, place.moved(place.axis - new, place.batch - new)), times)


def repeat_each(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Copies of each entry along another axis."""
    source, times, *rest = arguments(node)
    axis = rest[0] if rest else None
    if isinstance(times, fx.Node) or axis is None or wrap(axis, len(shape_of(node))) in (place.axis, place.batch):
        raise Unsinkable("rows or tokens are repeated here")
    return sinker.call(node.target, sinker.want(source, place), times, axis)


def select(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """One entry of another axis."""
    source, axis, entry = arguments(node)
    gone = wrap(axis, len(shape_of(source)))
    fresh = sinker.want(source, place.moved(place.axis + (place.axis >= gone), place.batch + (place.batch >= gone)))
    return sinker.call(node.target, fresh, gone, entry)


def slice_axis(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """A range of another axis stays; a range of tokens shifts the index."""
    defaults = (None, 0, None, None, 1)
    values: list[Any] = [*arguments(node), *defaults[len(node.args) :]]
    source, axis, start, stop, step = values
    axis, size = wrap(axis, len(shape_of(node))), shape_of(source)
    if axis == place.batch or (axis == place.axis and step != 1):
        raise Unsinkable("a slice takes some rows, or every so many tokens")
    if axis != place.axis:
        return sinker.call(node.target, sinker.want(source, place), axis, start, stop, step)
    first = slice(start, stop).indices(size[axis])[0]
    return sinker.want(source, replace(place, offset=place.offset + first))


def cat(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Tensors side by side are taken from each; tensors of tokens one after the other from the one they lie in."""
    sources: Sequence[fx.Node] = arguments(node)[0]
    axis = wrap(arguments(node)[1] if len(arguments(node)) > 1 else 0, len(shape_of(node)))
    if axis == place.batch:
        raise Unsinkable("rows are put together here")
    if axis != place.axis:
        return sinker.call(node.target, [sinker.want(source, place) for source in sources], axis)
    start = 0
    for source in sources:
        size = shape_of(source)[axis]
        if start <= place.offset and place.offset + sinker.tokens.count <= start + size:
            return sinker.want(source, replace(place, offset=place.offset - start))
        start += size
    raise Unsinkable("streams are put together here, and tokens of more than one are wanted")


def stack(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """A new axis of tensors side by side."""
    sources: Sequence[fx.Node] = arguments(node)[0]
    new = wrap(arguments(node)[1] if len(arguments(node)) > 1 else 0, len(shape_of(node)))
    if new in (place.axis, place.batch):
        raise Unsinkable("rows or tokens are put together here")
    inner = place.moved(place.axis - (place.axis > new), place.batch - (place.batch > new))
    return sinker.call(node.target, [sinker.want(source, inner) for source in sources], new)


def item(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """One part of a tensor that was split."""
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
        raise Unsinkable("rows are split here")
    if axis == place.axis:
        return sinker.want(source, replace(place, offset=place.offset + start))
    fresh = sinker.want(source, place)
    return sinker.call(aten.slice.Tensor, fresh, axis, start, start + parts[number].shape[axis])


def scatter_axis(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Writing into a range of another axis; how item assignment looks in a functional graph."""
    base, source, *rest = arguments(node)
    axis = wrap(rest[0] if rest else 0, len(shape_of(node)))
    if axis in (place.axis, place.batch):
        raise Unsinkable("it writes some tokens or rows")
    inner = place
    if node.target is aten.select_scatter.default:
        inner = place.moved(place.axis - (place.axis > axis), place.batch - (place.batch > axis))
    return sinker.call(node.target, sinker.want(base, place), sinker.want(source, inner), *rest)


def cast_like(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Only the dtype of the other tensor matters."""
    source, other = arguments(node)
    return sinker.call(aten._to_copy.default, sinker.want(source, place), dtype=tensor_of(other).dtype)


def filled_like(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """A new tensor of the shape of another."""
    source, *rest = arguments(node)
    return sinker.call(node.target, sinker.want(source, place), *rest, **node.kwargs)


def complex_numbers(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Pairs of the last axis become complex features or come from them; real and imaginary parts are elementwise."""
    source, *rest = arguments(node)
    if node.target is aten.view_as_complex.default and place.axis == len(shape_of(source)) - 1:
        raise Unsinkable("the tokens are the parts of complex numbers")
    if node.target in (aten.view_as_complex.default, aten.view_as_real.default):
        return sinker.call(node.target, sinker.want(source, place), *rest)
    return elementwise(sinker, node, place)


RULES: dict[Any, Rule] = {
    aten.linear: linear,
    **dict.fromkeys((aten.matmul, aten.mm, aten.bmm), product),
    **dict.fromkeys((aten.addmm, aten.baddbmm), product_with_bias),
    aten.scaled_dot_product_attention: attention,
    **dict.fromkeys((aten.layer_norm, aten.rms_norm), norm_over_features),
    **dict.fromkeys((aten.softmax, aten._softmax, aten._safe_softmax, aten.log_softmax), along_axis),
    **dict.fromkeys(
        (aten.mean, aten.sum, aten.var, aten.std, aten.amax, aten.amin, aten.linalg_vector_norm), reduction
    ),
    **dict.fromkeys((aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.squeeze), view),
    **dict.fromkeys((aten.permute, aten.transpose, aten.t), permute),
    aten.unsqueeze: unsqueeze,
    aten.expand: expand,
    aten.repeat: repeat,
    aten.repeat_interleave: repeat_each,
    aten.select: select,
    aten.slice: slice_axis,
    aten.cat: cat,
    aten.stack: stack,
    aten.type_as: cast_like,
    **dict.fromkeys((aten.slice_scatter, aten.select_scatter), scatter_axis),
    **dict.fromkeys((aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like), filled_like),
    **dict.fromkeys(
        (aten._to_copy, aten.alias, aten.detach, aten.dropout, aten.contiguous, aten.copy),
        elementwise,
    ),
    **dict.fromkeys(
        (aten.real, aten.imag, aten.complex, aten.polar, aten.view_as_complex, aten.view_as_real),
        complex_numbers,
    ),
}  # fmt: skip


def rule_for(node: fx.Node) -> Rule:
    """The rule of a node's operator.

    Raises:
        Unsinkable: There is none.
    """
    if getattr(node.target, "__name__", "") == "getitem":
        return item
    packet = getattr(node.target, "overloadpacket", None)
    if packet in RULES:
        return RULES[packet]
    if torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return elementwise
    raise Unsinkable(f"{packet or node.target} mixes tokens, or has no rule")
