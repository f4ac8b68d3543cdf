"""Python numbers that a model is called with, or keeps: as tensors, where the graph only computes with them.

Dynamo makes a number symbolic when it takes a second value (a timestep, the scale of an adapter). Left so, it would be
fixed to its value, and each value compiled anew. A float enters as a tensor of one number, and ``item`` takes it out.
An integer enters as it is, so that whoever calls the graph must pass a tensor in its place.
"""

import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import fx

from soda_compile.torch_internals.tracing import TO_TENSOR, fake_mode_of

_ARITHMETIC = (
    *(getattr(operator, name) for name in ("mul", "add", "sub", "truediv", "neg", "imul", "iadd", "isub", "itruediv")),
    *(getattr(torch, name) for name in ("mul", "add", "sub", "div")),
)
_METHODS = ("mul", "add", "sub", "div", "mul_", "add_", "sub_", "div_")


def keep_floats(module: fx.GraphModule) -> None:
    """Let tensors stand for floats that only arithmetic and fills take; others stay as they are."""
    changed = False
    for item in list(module.graph.find_nodes(op="call_method", target="item")):
        source = item.args[0]
        if _is_float(source) and _only_computes(item):
            item.replace_all_uses_with(source)
            module.graph.erase_node(item)
            _use_tensor(module.graph, source, torch.get_default_dtype())
            changed = True
    if changed:
        module.recompile()


def keep_integers(module: fx.GraphModule, inputs: Sequence[Any]) -> tuple[list[Any], frozenset[int]]:
    """Let tensors stand for integers that only arithmetic and fills take; sizes stay as they are.

    Returns:
        The example inputs with tensors for these, and the positions of these.
    """
    placeholders = module.graph.find_nodes(op="placeholder")
    taken = [
        index
        for index, (node, value) in enumerate(zip(placeholders, inputs, strict=True))
        if isinstance(value, torch.SymInt) and node.users and _only_computes(node)
    ]
    given = list(inputs)
    for index in taken:
        with fake_mode_of(inputs):
            given[index] = torch.empty((), dtype=torch.int64, device="cpu")
        placeholders[index].meta["example_value"] = given[index]
        _use_tensor(module.graph, placeholders[index], None)
    if taken:
        module.recompile()
    return given, frozenset(taken)


def with_tensors(run: Callable[..., Any], integers: Collection[int]) -> Callable[..., Any]:
    """Return a function that passes tensors for the integers in these positions; see ``keep_integers``."""

    def run_with_tensors(*inputs: Any) -> Any:
        return run(*(torch.tensor(value) if index in integers else value for index, value in enumerate(inputs)))

    return run_with_tensors


def _is_float(source: Any) -> bool:
    value = source.meta.get("example_value")
    return source.op == "placeholder" and value is not None and value.ndim == 0 and value.dtype == torch.float64


def _only_computes(number: fx.Node) -> bool:
    """Return whether a tensor may stand for a number wherever it is used."""
    for user in number.users:
        known = user.target in _ARITHMETIC if user.op == "call_function" else user.target in _METHODS
        if number in user.kwargs.values() or not (known or _is_fill(user, number)):
            return False
        if _is_number(user) and not _only_computes(user):
            return False
    return True


def _is_number(node: fx.Node) -> bool:
    return isinstance(node.meta.get("example_value"), torch.SymFloat | torch.SymInt)


def _is_fill(node: fx.Node, number: fx.Node) -> bool:
    """Return whether a node makes a tensor all of one number; ``scalar_tensor`` hands a float back to Python."""
    if node.target is torch.full:
        return node.args[1:] == (number,)
    return node.target is torch.scalar_tensor or (node.target is TO_TENSOR and node.args[0] in (number, [number]))


def _use_tensor(graph: fx.Graph, source: fx.Node, dtype: torch.dtype | None) -> None:
    """Rewrite what uses a number for the tensor that stands for it: numbers computed from it stay as wide as it is.

    Args:
        graph: The graph.
        source: The tensor.
        dtype: What tensors meet it as, if it must not widen them.
    """
    numbers = [source]
    for number in numbers:
        numbers += [user for user in number.users if _is_number(user) and user not in numbers]
    for number in numbers:
        for user in set(number.users) - set(numbers):
            _rewrite_user(graph, number, user, dtype)
    for number in numbers[1:]:
        del number.meta["example_value"]


def _rewrite_user(graph: fx.Graph, number: fx.Node, user: fx.Node, dtype: torch.dtype | None) -> None:
    with graph.inserting_before(user):
        if not _is_fill(user, number):
            if dtype is not None:
                user.replace_input_with(number, graph.call_method("to", (number, dtype)))
            return
        example = user.meta["example_value"]
        filled = graph.call_method("to", (number, example.device, example.dtype, False, True))
        if user.target is not torch.scalar_tensor:
            shape = user.args[0] if user.target is torch.full else tuple(example.shape)
            filled = graph.call_method("clone", (graph.call_method("expand", (filled, shape)),))
    user.replace_all_uses_with(filled)
    graph.erase_node(user)
