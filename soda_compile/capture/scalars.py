"""Python floats that a model is called with, or keeps: as tensors, where the graph only computes with them.

Dynamo makes a float symbolic when it takes a second value (a timestep, the scale of an adapter): the float enters as a
tensor of one number, and ``item`` takes it out. Left so, it would be fixed to its value, and each value compiled anew.
"""

import operator
from typing import Any

import torch
from torch import fx

_ARITHMETIC = (
    *(getattr(operator, name) for name in ("mul", "add", "sub", "truediv", "neg", "imul", "iadd", "isub", "itruediv")),
    *(getattr(torch, name) for name in ("mul", "add", "sub", "div")),
)
_METHODS = ("mul", "add", "sub", "div", "mul_", "add_", "sub_", "div_")


def keep_floats(module: fx.GraphModule) -> None:
    """Let tensors stand for floats that only arithmetic and ``torch.full`` take; others stay as they are."""
    changed = False
    for item in list(module.graph.find_nodes(op="call_method", target="item")):
        if _is_float(item.args[0]) and _only_computes(item):
            with module.graph.inserting_before(item):
                number = module.graph.call_method("to", (item.args[0], torch.get_default_dtype()))
            item.replace_all_uses_with(number)
            module.graph.erase_node(item)
            _expand_fills(module.graph, number)
            changed = True
    if changed:
        module.recompile()


def _is_float(source: Any) -> bool:
    value = source.meta.get("example_value")
    return source.op == "placeholder" and value is not None and value.ndim == 0 and value.dtype == torch.float64


def _only_computes(number: fx.Node) -> bool:
    """Return whether a tensor may stand for a number wherever it is used."""
    for user in number.users:
        if number in user.kwargs.values() or (_is_fill(user) and user.args[1:2] != (number,)):
            return False
        known = user.target in (_ARITHMETIC if user.op == "call_function" else _METHODS)
        if not known and not _is_fill(user):
            return False
        if isinstance(user.meta.get("example_value"), torch.SymFloat) and not _only_computes(user):
            return False
    return True


def _is_fill(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is torch.full


def _expand_fills(graph: fx.Graph, number: fx.Node) -> None:
    """Write ``torch.full(size, number)`` as a cast and an expand, for all that is computed from the number."""
    for user in list(number.users):
        if _is_fill(user):
            with graph.inserting_before(user):
                example = user.meta["example_value"]
                cast = graph.call_method("to", (number, example.device, example.dtype))
                expanded = graph.call_method("expand", (cast, user.args[0]))
                filled = graph.call_method("clone", (expanded,))
            user.replace_all_uses_with(filled)
            graph.erase_node(user)
        elif isinstance(user.meta.get("example_value"), torch.SymFloat):
            del user.meta["example_value"]  # a tensor now
            _expand_fills(graph, user)
