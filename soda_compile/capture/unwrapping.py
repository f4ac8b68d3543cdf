"""Weights that are tensor subclasses around plain tensors, such as torchao's quantised ones, as their plain tensors.

Inductor takes graphs over plain tensors. Here the graph from Dynamo is given the plain tensors inside as inputs, and
builds the subclass from them first; when it is captured, what the subclass does is traced through.
"""

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from torch import fx

from soda_compile.torch_internals.tracing import is_wrapper, source_name
from soda_compile.torch_internals.wrapped_tensors import flatten_inputs, has_wrapped, plain_tensors


def unwrap_inputs(module: fx.GraphModule, inputs: Sequence[Any]) -> tuple[fx.GraphModule, Sequence[Any]]:
    """Return the same graph over plain tensors; a graph that has no wrapped inputs as it is.

    Args:
        module: Graph from Dynamo.
        inputs: Its example inputs.

    Returns:
        The graph and its example inputs, each wrapped one replaced, where it stands, by the tensors inside.
    """
    if not has_wrapped(inputs):
        return module, inputs
    graph = fx.Graph()
    placeholders = module.graph.find_nodes(op="placeholder")
    leaves = [
        [_placeholder(graph, node, path) for path, _ in plain_tensors(value)]
        for node, value in zip(placeholders, inputs, strict=True)
    ]
    values: dict[fx.Node, Any] = {
        node: graph.call_function(_builder(value), tuple(inner)) if is_wrapper(value) else inner[0]
        for node, value, inner in zip(placeholders, inputs, leaves, strict=True)
    }
    graph.output(graph.graph_copy(module.graph, values))
    return fx.GraphModule(module, graph), flatten_inputs(inputs)


def _builder(like: Any) -> Callable[..., Any]:
    """Return a function that makes a tensor of the subclass of ``like`` around other plain tensors."""

    def wrapped_tensor(*leaves: Any) -> Any:
        return _rebuild(like, iter(leaves))

    return wrapped_tensor


def _rebuild(like: Any, leaves: Iterator[Any]) -> Any:
    if not is_wrapper(like):
        return next(leaves)
    names, context = like.__tensor_flatten__()
    inner = {name: _rebuild(getattr(like, name), leaves) for name in names}
    return type(like).__tensor_unflatten__(inner, context, like.shape, like.stride())


def _placeholder(graph: fx.Graph, node: fx.Node, path: str) -> fx.Node:
    made = graph.placeholder(node.name + path.replace(".", "_"))
    made.meta = dict(node.meta)
    if path:
        made.meta["grapharg"] = SimpleNamespace(source=SimpleNamespace(name=source_name(node) + path))
        made.meta.pop("example_value", None)
        made.meta.pop("val", None)
    return made
