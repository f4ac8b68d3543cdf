"""Prints graphs so that a person can review what a pass did."""

from textwrap import dedent
from typing import Any

import torch
from torch import Tensor, fx

_SHORT = {
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float64: "f64",
    torch.float16: "f16",
    torch.float8_e4m3fn: "f8",
    torch.int8: "i8",
    torch.int64: "i64",
    torch.bool: "bool",
}


def text(graph: fx.Graph) -> str:
    """One line a node: ``%name: dtype[shape] = operator(arguments)``; inputs come first, then the body."""
    return "\n".join(_line(node) for node in graph.nodes)


def golden(expected: str) -> str:
    """A golden text as it is written, indented, in a test."""
    return dedent(expected).strip()


def _line(node: fx.Node) -> str:
    if node.op == "output":
        return f"return {_value(node.args[0])}"
    if node.op == "placeholder":
        call = "input"
    else:
        name = str(getattr(node.target, "overloadpacket", getattr(node.target, "__name__", node.target)))
        arguments = [*map(_value, node.args), *(f"{key}={_value(value)}" for key, value in node.kwargs.items())]
        call = f"{name.removeprefix('aten.')}({', '.join(arguments)})"
    return f"%{node.name}: {_type(node.meta['val'])} = {call}"


def _value(value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_value, value))})"
    if isinstance(value, torch.dtype):
        return _SHORT[value]
    return "end" if value == 2**63 - 1 else repr(value)


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{_SHORT[value.dtype]}{list(value.shape)}"
    return f"({', '.join(map(_type, value))})"
