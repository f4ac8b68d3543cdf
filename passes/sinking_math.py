"""Rules for arithmetic: one for each kind of operator, which says how taking tokens commutes."""

import torch
from torch import fx

from soda_compile.ir.aten_operators import tensor_of
from soda_compile.passes.selection import Place
from soda_compile.passes.sinking import Sinker, Unsinkable, aligned, arguments, shape_of, wrap

aten = torch.ops.aten


def through(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink through an operator that treats each token of its first argument alike."""
    source, *rest = arguments(node)
    return sinker.call(node.target, sinker.want(source, place), *rest, **node.kwargs)


def elementwise(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink through an elementwise operator; what is broadcast over tokens stays."""
    rank = len(shape_of(node))

    def pick(argument: fx.Node) -> fx.Node:
        if not isinstance(argument.meta.get("val"), torch.Tensor):
            return argument
        return aligned(sinker, argument, place, rank)

    args, kwargs = fx.map_arg((node.args, node.kwargs), pick)
    return sinker.call(node.target, *args, **kwargs)


def linear(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink through a linear, which works on each token by itself."""
    if place.axis == len(shape_of(node)) - 1:
        raise Unsinkable("the tokens are the output features of a linear")
    return through(sinker, node, place)


def product(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink into the left factor of a matrix product for its rows, into the right one for its columns."""
    left, right = arguments(node)[:2]
    rank = len(shape_of(node))
    if place.axis == rank - 2 and len(shape_of(left)) == rank:
        return sinker.call(node.target, sinker.want(left, place), right)
    if place.axis == rank - 1 and len(shape_of(right)) == rank:
        return sinker.call(node.target, left, sinker.want(right, place))
    raise Unsinkable("the tokens are neither rows nor columns of a matrix product")


def product_with_bias(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink as ``product`` does; the bias is broadcast over the rows or has as many."""
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
    """Sink into the queries of an attention, and its mask where that has them; keys and values keep all tokens."""
    query, key, value, *rest = arguments(node)
    rank = len(shape_of(node))
    if place.axis != rank - 2:
        raise Unsinkable("the tokens are not the queries of an attention")
    options = dict(zip(("attn_mask", "dropout_p", "is_causal"), rest, strict=False)) | node.kwargs
    if options.pop("is_causal", False):
        raise Unsinkable("a causal attention counts its queries")
    sinker.keep_whole([key, value])
    mask = options.pop("attn_mask", None)
    if isinstance(mask, fx.Node):
        mask = aligned(sinker, mask, place, rank)
    options.pop("dropout_p", None)  # there is none outside training
    return sinker.call(node.target, sinker.want(query, place), key, value, mask, 0.0, False, **options)


def norm_over_features(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink through a norm over the last axes, which treats each token alike."""
    if place.axis >= len(shape_of(node)) - len(arguments(node)[1]):
        raise Unsinkable("the norm runs over tokens")
    return through(sinker, node, place)


def along_axis(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink through an operator along one other axis (softmax, cumulative sum)."""
    if wrap(arguments(node)[1], len(shape_of(node))) == place.axis:
        raise Unsinkable("it runs over tokens")
    return through(sinker, node, place)


def reduction(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink through a mean, sum, variance or norm over features, one number for each token."""
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
    return through(sinker, node, inner)


def complex_numbers(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink through pairs of the last axis that become complex features or come from them, or their parts."""
    if node.target is aten.view_as_complex.default and place.axis == len(shape_of(arguments(node)[0])) - 1:
        raise Unsinkable("the tokens are the parts of complex numbers")
    if node.target in (aten.view_as_complex.default, aten.view_as_real.default):
        return through(sinker, node, place)
    return elementwise(sinker, node, place)


def cast_like(sinker: Sinker, node: fx.Node, place: Place) -> fx.Node:
    """Sink through a cast to the dtype of another tensor."""
    source, other = arguments(node)
    return sinker.call(aten._to_copy.default, sinker.want(source, place), dtype=tensor_of(other).dtype)
