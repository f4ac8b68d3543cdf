"""Reading and building graphs."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx

from soda_compile.ir.roles import Size
from soda_compile.torch_internals.size_expressions import as_arguments, expression, sizes_read, with_values
from soda_compile.torch_internals.tracing import fake_mode_of


def find_node(graph: fx.Graph, name: str) -> fx.Node:
    """Return the node of that name; names of cuts are kept by every pass."""
    for node in graph.nodes:
        if node.name == name:
            return node  # type: ignore[no-any-return]
    raise LookupError(f"the graph has no node {name}; a cut must be rewritten before it is removed")


def add_input(graph: fx.Graph, name: str, value: Any, role: Any) -> fx.Node:
    """Add a placeholder after the others; ``role`` says what the runtime passes for it."""
    last = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(last[-1]) if last else graph.inserting_before(next(iter(graph.nodes))):
        node = graph.placeholder(name)
    node.target = node.name  # the name may have been taken
    node.meta = {"val": value, "role": role}
    return node


def add_sizes(graph: fx.Graph) -> tuple[Size, ...]:
    """Add a placeholder for each of the sizes that tell all others in the graph; return what they take."""
    sizes = sizes_read(graph)
    found = []
    for number, size in enumerate(sizes):
        role = Size(expression(size))
        add_input(graph, f"size_{number}", size, role)
        found.append(role)
    return tuple(found)


def output_of(graph: fx.Graph) -> fx.Node:
    """Return the node that returns the graph's results."""
    return next(iter(reversed(graph.nodes)))  # type: ignore[no-any-return]


def results_of(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """Return the values that the graph returns."""
    return tuple(output_of(graph).args[0])  # type: ignore[arg-type]


def add_output(graph: fx.Graph, node: fx.Node, role: Any) -> None:
    """Return a value after the others; ``role`` says where the runtime puts it."""
    output = output_of(graph)
    output.args = ((*results_of(graph), node),)
    output.meta["roles"] = (*output.meta.get("roles", ()), role)


def input_with_role(graph: fx.Graph, role: Any) -> fx.Node | None:
    """Return the placeholder that takes what ``role`` says, if the graph has it."""
    found = (node for node in graph.nodes if node.op == "placeholder" and node.meta.get("role") == role)
    return next(found, None)


def add_call(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """Add a call of an ATen operator, with the fake tensor it gives."""
    node = graph.call_function(target, *as_arguments((args, kwargs)))
    values: tuple[tuple[Any, ...], Mapping[str, Any]] = with_values((args, kwargs))
    # Some operators make tensors of their own on the way; those must be fake too.
    with torch.no_grad(), fake_mode_of(values):
        node.meta = {"val": target(*values[0], **values[1])}
    return node


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """Return a copy with the same node names."""
    return copy.deepcopy(graph)


def extract(inputs: Iterable[fx.Node], nodes: Iterable[fx.Node], results: Iterable[fx.Node]) -> fx.GraphModule:
    """Return a graph of its own for ``nodes``, which takes ``inputs`` and returns ``results``."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = {"val": node.meta["val"]}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in results))
    return fx.GraphModule(torch.nn.Module(), graph)
