"""The table of rules by which a gather is sunk.

A rule is asked for some tokens of a node's output. It asks the sinker for those tokens of the node's arguments and
gives the node's operator on them, or raises ``Unsinkable`` with the reason why it can't.
"""

from typing import Any

import torch
from torch import fx

from soda_compile.passes.sinking import Rule, Unsinkable
from soda_compile.passes.sinking_math import (
    along_axis,
    attention,
    cast_like,
    complex_numbers,
    elementwise,
    linear,
    norm_over_features,
    product,
    product_with_bias,
    reduction,
    through,
)
from soda_compile.passes.sinking_shapes import (
    cat,
    expand,
    item,
    permute,
    repeat,
    repeat_each,
    scatter_axis,
    select,
    slice_axis,
    stack,
    unsqueeze,
    view,
)

aten = torch.ops.aten

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
    **dict.fromkeys((aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like), through),
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
    """Return the rule of a node's operator.

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
