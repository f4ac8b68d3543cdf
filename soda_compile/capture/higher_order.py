"""Operators that take graphs, such as flex attention, as ordinary functions of tensors."""

import hashlib
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx


@dataclass(frozen=True)
class _Hole:
    """The place of an operand."""

    index: int


class BoundOperator:
    """A higher-order operator with the graphs that it takes, called with its other operands in order.

    A node with this target needs no submodules, so it can move from graph to graph like any other. Equal operators
    have equal texts.

    Attributes:
        overloadpacket: The operator.
    """

    def __init__(self, operator: Any, args: Any, kwargs: Any) -> None:
        self.overloadpacket = operator
        self._args, self._kwargs = args, kwargs
        text = repr(fx.node.map_aggregate((args, kwargs), _text))
        self.__name__ = f"{operator.__name__}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        self.__module__ = __name__

    def __call__(self, *operands: Any) -> Any:
        """Calls the operator."""

        def fill(value: Any) -> Any:
            return operands[value.index] if isinstance(value, _Hole) else value

        return self.overloadpacket(
            *fx.node.map_aggregate(self._args, fill), **fx.node.map_aggregate(self._kwargs, fill)
        )

    def __repr__(self) -> str:
        return self.__name__


def bind_operators(graph: fx.Graph) -> None:
    """Replace every operator that takes graphs by a ``BoundOperator``."""
    owner = graph.owning_module
    for node in list(graph.nodes):
        modules = [source for source in node.all_input_nodes if source.op == "get_attr"]
        if node.op != "call_function" or owner is None or not modules:
            continue
        operands: list[fx.Node] = []
        held = {source: operator.attrgetter(str(source.target))(owner) for source in modules}
        if not all(isinstance(value, torch.nn.Module) for value in held.values()):
            continue

        def hole(source: fx.Node, held: Any = held, operands: list[fx.Node] = operands) -> Any:
            if source in held:
                return held[source]
            operands.append(source)
            return _Hole(len(operands) - 1)

        args, kwargs = fx.map_arg((node.args, node.kwargs), hole)
        node.target = BoundOperator(node.target, args, kwargs)
        node.args, node.kwargs = tuple(operands), {}


def _text(value: Any) -> Any:
    return str(value.graph) if isinstance(value, fx.GraphModule) else value
