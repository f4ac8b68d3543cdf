"""Helpers to read and build graphs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from soda_compile.torch_internals.tracing import fake_mode_of


def find_node(graph: fx.Graph, name: str) -> fx.Node:
    """The node of that name; names of cuts are kept by every pass."""
    for node in graph.nodes:
        if node.name == name:
            return node  # type: ignore[no-any-return]
    raise LookupError(f"the graph has no node {name}; a cut must be rewritten before it is removed")


def add_input(graph: fx.Graph, name: str, value: torch.Tensor, role: Any) -> fx.Node:
    """Adds a placeholder after the others; ``role`` tells the runtime what to pass for it."""
    last = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(last[-1]) if last else graph.inserting_before(next(iter(graph.nodes))):
        node = graph.placeholder(name)
    node.target = node.name  # the name may have been taken
    node.meta = {"val": value, "role": role}
    return node


def output_of(graph: fx.Graph) -> fx.Node:
    """The node that returns the graph's results."""
    return next(iter(reversed(graph.nodes)))  # type: ignore[no-any-return]


def results_of(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """The values that the graph returns."""
    return tuple(output_of(graph).args[0])  # type: ignore[arg-type]


def add_output(graph: fx.Graph, node: fx.Node, role: Any) -> None:
    """Returns a value after the others; ``role`` tells the runtime where to put it."""
    output = output_of(graph)
    output.args = ((*results_of(graph), node),)
    output.meta["roles"] = (*output.meta.get("roles", ()), role)


def input_with_role(graph: fx.Graph, role: Any) -> fx.Node | None:
    """The placeholder that takes what ``role`` says, if the graph has it."""
    found = (node for node in graph.nodes if node.op == "placeholder" and node.meta.get("role") == role)
    return next(found, None)


def add_call(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """Adds a call of an ATen operator, with the fake tensor it gives."""
    node = graph.call_function(target, args, kwargs)
    values: tuple[tuple[Any, ...], Mapping[str, Any]] = fx.map_arg((args, kwargs), lambda source: source.meta["val"])
    # Some operators make tensors of their own on the way; those must be fake too.
    with torch.no_grad(), fake_mode_of(values):
        node.meta = {"val": target(*values[0], **values[1])}
    return node


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy with the same node names."""
    return copy.deepcopy(graph)
