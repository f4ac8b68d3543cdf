"""The file form of a captured denoiser: JSON for the graph, safetensors for its constants, one checksum over both."""

import hashlib
import json
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import fx

from soda_compile.ir.captured import Captured
from soda_compile.storage.tensor_metadata import metadata_of
from soda_compile.torch_internals.tracing import BUILT_IN, refake_mode

_DIGEST_BYTES = 32


class NotPortable(Exception):
    """The graph holds something that means nothing to another process."""


def encode(captured: Captured) -> bytes:
    """Pack a captured denoiser.

    Raises:
        NotPortable: Naming what the graph holds that cannot be written.
    """
    graph = {
        "nodes": [_node(node) for node in captured.graph.nodes],
        "inputs": captured.inputs,
        "paths": captured.paths,
        "parameters": captured.parameters,
        "outputs": captured.outputs,
    }
    for name, value in captured.constants.items():
        if not value.is_contiguous():
            raise NotPortable(f"the constant {name}, which is not contiguous")
    constants = {name: value.cpu().clone() for name, value in captured.constants.items()}
    try:
        data: bytes = save_tensors(constants, metadata={"captured": json.dumps(graph)})
    except KeyError as error:
        raise NotPortable(f"a constant of the dtype {error}, which safetensors cannot store") from error
    return hashlib.sha256(data).digest() + data


def decode(data: bytes) -> Captured:
    """Unpack what ``encode`` packed; fake tensors are made in the fake mode that is being traced under.

    Raises:
        ValueError: If the data is truncated, damaged, or names an operator that does not exist here.
    """
    digest, data = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(data).digest() != digest:
        raise ValueError("the checksum does not fit the content")
    try:
        found = json.loads(metadata_of(data)["captured"])
        graph = _graph(found["nodes"])
        devices = {node.name: getattr(node.meta["val"], "device", None) for node in graph.find_nodes(op="placeholder")}
        constants = {name: value.to(devices[name]) for name, value in load_tensors(data).items()}
        names: dict[str, Any] = {entry: tuple(found[entry]) for entry in ("inputs", "paths", "parameters", "outputs")}
    except (SafetensorError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return Captured(graph=graph, constants=constants, **names)


def _node(node: fx.Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "op": node.op,
        "target": _operator_name(node.target) if node.op == "call_function" else node.target,
        "args": _written(node.args),
        "kwargs": {name: _written(value) for name, value in node.kwargs.items()},
        "value": _layouts(node.meta.get("val")),
        "paths": node.meta["paths"],
        "classes": node.meta["classes"],
    }


def _graph(nodes: list[dict[str, Any]]) -> fx.Graph:
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    with refake_mode():
        for entry in nodes:
            target = _operator(entry["target"]) if entry["op"] == "call_function" else entry["target"]
            kwargs = {name: _read(value, made) for name, value in entry["kwargs"].items()}
            node = graph.create_node(entry["op"], target, _read(entry["args"], made), kwargs, name=entry["name"])
            if node.name != entry["name"]:
                raise ValueError(f"two nodes are called {entry['name']!r}")
            node.meta["val"] = _fakes(entry["value"])
            node.meta["paths"], node.meta["classes"] = tuple(entry["paths"]), tuple(entry["classes"])
            made[node.name] = node
    graph.lint()
    return graph


def _operator_name(target: Any) -> str:
    if target is operator.getitem:
        return "getitem"
    if isinstance(target, torch._ops.OpOverload) and target.namespace in BUILT_IN:
        return str(target)
    raise NotPortable(f"the operator {target}")


def _operator(name: str) -> Callable[..., Any]:
    if name == "getitem":
        return operator.getitem
    found: Any = torch.ops
    for part in name.split("."):
        found = getattr(found, part)
    assert isinstance(found, torch._ops.OpOverload)
    return found


_NAMED: Mapping[str, type] = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


def _written(value: Any) -> Any:
    """Return an argument as JSON: what JSON has no form for becomes an object with one entry, which says what it is."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, list):
        return [_written(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_written(item) for item in value]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for kind, type_ in _NAMED.items():
        if isinstance(value, type_):
            return {kind: str(value).removeprefix("torch.")}
    raise NotPortable(f"an argument of type {type(value).__name__}")


def _read(value: Any, made: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_read(item, made) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tuple":
        return tuple(_read(item, made) for item in content)
    if kind == "node":
        return made[content]
    return torch.device(content) if kind == "device" else getattr(torch, content)


def _layouts(value: Any) -> Any:
    """Return the layout of a node's result, or several where it gives several."""
    if value is None or type(value) in (bool, int, float):
        return {"number": value}
    if isinstance(value, list | tuple):
        return {"several": [_layouts(item) for item in value], "list": isinstance(value, list)}
    if not isinstance(value, torch.Tensor):
        raise NotPortable(f"a result of type {type(value).__name__}")
    sizes = [*value.shape, *value.stride()]
    if not all(type(size) is int for size in sizes):
        raise NotPortable("a size that depends on data")
    axes = len(value.shape)
    return {"sizes": [sizes[:axes], sizes[axes:]], "dtype": _written(value.dtype), "device": _written(value.device)}


def _fakes(value: Any) -> Any:
    if "number" in value:
        return value["number"]
    if "several" in value:
        return (list if value["list"] else tuple)(_fakes(item) for item in value["several"])
    dtype, device = _read(value["dtype"], {}), _read(value["device"], {})
    return torch.empty_strided(*value["sizes"], dtype=dtype, device=device)
