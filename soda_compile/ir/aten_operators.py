"""ATen operators that do heavy work, and those that only rename, cast or select the elements of one tensor."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import flop_registry

from soda_compile.torch_internals.size_expressions import comparable, follows_from_data, size_hint

aten = torch.ops.aten

ATTENTION = frozenset(
    {
        aten.scaled_dot_product_attention,
        aten._scaled_dot_product_flash_attention,
        aten._scaled_dot_product_flash_attention_for_cpu,
        aten._scaled_dot_product_efficient_attention,
        aten._scaled_dot_product_cudnn_attention,
        torch.ops.higher_order.flex_attention,
    }
)
PRODUCTS = frozenset({aten.linear, aten.matmul, aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.einsum})
QUANTISED = frozenset({aten._int_mm, aten._scaled_mm})  # linears of quantised weights
CONVOLUTIONS = frozenset({aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution})
HEAVY = ATTENTION | PRODUCTS | QUANTISED | CONVOLUTIONS

CASTS = frozenset(
    {aten._to_copy, aten.to, aten.clone, aten.contiguous, aten.alias, aten.detach, aten.dropout, aten.type_as}
)
VIEWS = frozenset(
    {
        aten.view,
        aten.reshape,
        aten._unsafe_view,
        aten.unsqueeze,
        aten.squeeze,
        aten.transpose,
        aten.permute,
        aten.expand,
        aten.flatten,
        aten.unflatten,
        aten.movedim,
        aten.t,
    }
)
SELECTIONS = frozenset(
    {
        aten.slice,
        aten.select,
        aten.narrow,
        aten.split,
        aten.split_with_sizes,
        aten.chunk,
        aten.unbind,
        aten.tensor_split,
    }
)
SPLITS = {aten.split.Tensor: 2, aten.split_with_sizes.default: 2, aten.chunk.default: 2}
"""Overloads that divide an axis, and where their arguments name it; the first axis if they do not."""
CLAMPS = frozenset({aten.clamp, aten.clip, aten.clamp_min, aten.clamp_max})
LOOK_THROUGH = CASTS | VIEWS | SELECTIONS | CLAMPS


def packet(node: fx.Node) -> Any:
    """Return the operator without its overload: ``aten.add`` for ``aten.add.Tensor``; other targets as they are."""
    return getattr(node.target, "overloadpacket", node.target)


def is_heavy(node: fx.Node) -> bool:
    """Return whether the node multiplies matrices, attends or convolves."""
    return packet(node) in HEAVY


def is_collective(node: fx.Node) -> bool:
    """Return whether the node sends or receives values of other processes, or waits for what was sent."""
    return node.op == "call_function" and str(node.target).startswith("_c10d_functional.")


def counts_collective(node: fx.Node) -> bool:
    """Return whether the node is a collective; those come in pairs of one, and of what waits for it."""
    return is_collective(node) and "wait_tensor" not in str(node.target)


def collective_groups(graph: fx.Graph) -> set[str]:
    """Return the names of the process groups that a graph, also one from Dynamo, sends in."""
    return {group for node in graph.nodes if counts_collective(node) for group in _groups(node)}


def _groups(node: fx.Node) -> list[str]:
    arguments = getattr(node.target, "default", node.target)._schema.arguments  # type: ignore[union-attr]
    given = {**dict(zip((each.name for each in arguments), node.args, strict=False)), **node.kwargs}
    return [str(given["group_name"])] if "group_name" in given else []


def looks_through(node: fx.Node) -> bool:
    """Return whether the node only renames, casts, clips or selects elements of its first argument."""
    return packet(node) in LOOK_THROUGH or node.target is operator.getitem


def takes_features(node: fx.Node) -> bool:
    """Return whether the node selects along the last axis: a chunk of a modulation, not a part of the tokens."""
    if node.target is operator.getitem:
        (node,) = node.all_input_nodes
    if packet(node) not in SELECTIONS:
        return False
    parts = node.meta["val"] if isinstance(node.meta["val"], list | tuple) else [node.meta["val"]]
    whole = comparable(tensor_of(node.all_input_nodes[0]).shape[-1:])
    return any(comparable(part.shape[-1:]) != whole for part in parts)


def tensor_of(node: fx.Node) -> torch.Tensor:
    """Return the node's fake tensor (shape, dtype, strides, device)."""
    value = node.meta["val"]
    assert isinstance(value, torch.Tensor), f"{node.name} holds {type(value).__name__}, not a tensor"
    return value


def holds_tensor(node: fx.Node) -> bool:
    """Return whether the node's value is one tensor."""
    return isinstance(node.meta.get("val"), torch.Tensor)


def can_be_stored(node: fx.Node) -> bool:
    """Return whether the node's value is one tensor whose sizes do not depend on data."""
    return holds_tensor(node) and not any(map(follows_from_data, tensor_of(node).shape))


def tensor_bytes(node: fx.Node) -> int:
    """Return the size of the node's tensor in bytes, see ``shape_of``."""
    return math.prod(shape_of(node)) * tensor_of(node).element_size()


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the tensor's sizes, in the example; for a size that depends on data, the largest it can be."""
    return tuple(map(size_hint, tensor_of(node).shape))


def _product_flops(node: fx.Node) -> int:
    inner = shape_of(node.args[0])[-1]  # type: ignore[arg-type]
    return 2 * math.prod(shape_of(node)) * inner


def _attention_flops(node: fx.Node) -> int:
    query, key, value = (shape_of(argument) for argument in node.args[:3])  # type: ignore[arg-type]
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _convolution_flops(node: fx.Node) -> int:
    weight = shape_of(node.args[1])  # type: ignore[arg-type]
    return 2 * math.prod(shape_of(node)) * math.prod(weight[1:])


def _einsum_flops(node: fx.Node) -> int:
    if len(node.args[1]) < 2:  # type: ignore[arg-type]
        return 0  # a permutation
    equation = str(node.args[0]).replace(" ", "")
    sizes: dict[str, int] = {}
    for term, argument in zip(equation.split("->")[0].split(","), node.args[1], strict=True):  # type: ignore[arg-type]
        front, _, back = term.partition("...")
        shape = shape_of(argument)
        sizes |= dict(zip(front, shape, strict=False)) | dict(zip(reversed(back), reversed(shape), strict=False))
    summed = [size for letter, size in sizes.items() if letter not in equation.partition("->")[2]]
    return 2 * math.prod(shape_of(node)) * math.prod(summed)


# The registry of torch knows the decomposed operators; these are the whole ones that capture keeps.
_WHOLE: dict[Any, Callable[[fx.Node], int]] = {
    aten.linear: _product_flops,
    aten.matmul: _product_flops,
    aten.einsum: _einsum_flops,
    **dict.fromkeys(ATTENTION, _attention_flops),
    **dict.fromkeys(QUANTISED, _product_flops),
    **dict.fromkeys(CONVOLUTIONS, _convolution_flops),
}


def flops(node: fx.Node) -> int:
    """Count the floating-point operations of one node, a multiply-add counted as two.

    Only matrix products, attention and convolutions count, as in ``torch.utils.flop_counter``.
    """
    if not is_heavy(node):
        return 0
    if formula := _WHOLE.get(packet(node)):
        return formula(node)
    values = [_largest(argument) if isinstance(argument, fx.Node) else argument for argument in node.args]
    return int(flop_registry[packet(node)](*values, **node.kwargs, out_val=_largest(node)))


def _largest(node: fx.Node) -> Any:
    return torch.empty(shape_of(node), device="meta") if holds_tensor(node) else node.meta["val"]


def graph_flops(graph: fx.Graph) -> int:
    """Count the floating-point operations of one run of the graph."""
    return sum(flops(node) for node in graph.nodes if node.op == "call_function")
