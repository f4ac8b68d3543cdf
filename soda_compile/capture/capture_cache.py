"""Captured denoisers in files beside Inductor's caches, so that one is traced in the first process alone."""

import functools
import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from soda_compile.capture.graph_file import NotPortable, decode, encode
from soda_compile.ir.captured import Captured
from soda_compile.storage.cache import keep
from soda_compile.storage.files import write_atomic
from soda_compile.torch_internals.tracing import (
    BUILT_IN,
    CACHE_VARIABLE,
    inductor_cache_folder,
    refused_by_caches,
    source_name,
    tracing_state,
)

log = logging.getLogger(__name__)

_NUMBERS = (bool, int, float, complex)
_PLAIN = (*_NUMBERS, str, type(None), type(...), torch.dtype, torch.device, torch.layout, torch.memory_format)


def capture_key(module: fx.GraphModule, inputs: Sequence[Any], parameters: Sequence[bool]) -> str | None:
    """Return a hash of all that a capture follows from; None where that cannot be told, or PyTorch's caches are off.

    Args:
        module: Graph from Dynamo; its text, where it was traced and where its inputs come from belong to the key.
        inputs: Example inputs of static shapes; their layouts and types belong to the key, their values do not.
        parameters: For each input, whether it belongs to the model.
    """
    try:
        if reason := refused_by_caches(module):
            raise NotPortable(reason)
        lines = [torch.__version__, str(torch.version.git_version), _own_sources(), *tracing_state()]
        lines.append(_text(tuple(parameters)))
        lines += [_input_text(value) for value in inputs]
        lines += [line for node in module.graph.nodes for line in _node_texts(node)]
    except NotPortable as error:
        log.info("the capture is not kept for the next start: %s", error)
        return None
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def load_capture(key: str | None) -> Captured | None:
    """Return the capture that was kept under a key, if there is one; a damaged file is as good as none."""
    if key is None:
        return None
    path = _path(key)
    try:
        return decode(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        log.warning("the capture kept in %s cannot be used, the model is traced again: %s", path, error)
        return None


def store_capture(key: str | None, captured: Captured) -> None:
    """Keep a capture for the next start."""
    if key is None:
        return
    try:
        data = encode(captured)
    except NotPortable as error:
        log.info("the capture is not kept for the next start: %s", error)
        return
    path = _path(key)

    def save() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)

    keep(path.parents[1], save, CACHE_VARIABLE)


def _path(key: str) -> Path:
    return inductor_cache_folder() / "soda" / key[:2] / f"{key}.capture"


@functools.cache
def _own_sources() -> str:
    """Return a digest of the rooms that a capture follows from: another version may capture in another way."""
    package = Path(__file__).parents[1]
    files = sorted(file for room in ("torch_internals", "ir", "capture") for file in (package / room).glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _input_text(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return _text(value)
    layout = f"{tuple(value.shape)} {value.stride()} {value.storage_offset()} {value.dtype} {value.device}"
    return f"{value.requires_grad} {value.layout} {layout}"


def _node_texts(node: fx.Node) -> Iterator[str]:
    if node.op in ("get_attr", "call_module"):
        raise NotPortable(f"the graph holds {node.target}")
    target = _function_name(node.target) if node.op == "call_function" else node.target
    yield f"{node.name} = {node.op} {target} {_text(node.args)} {_text(node.kwargs)} {source_name(node)}"
    for path, kind, *_ in (node.meta.get("nn_module_stack") or {}).values():
        yield f"{path} {getattr(kind, '__module__', '')} {getattr(kind, '__qualname__', kind)}"


def _function_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        name = str(target)
        if name.split(".")[0] in BUILT_IN:
            return name
        raise NotPortable(f"the operator {name}, which is not of torch")
    name = f"{target.__module__}.{target.__qualname__}" if hasattr(target, "__qualname__") else ""
    if name.split(".")[0] not in ("torch", "_operator", "math", "builtins"):
        raise NotPortable(f"the function {target}, which is not of torch")
    return name


def _text(value: Any) -> str:
    """Return an argument as text that says all of it."""
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({', '.join(_text(item) for item in value)})"
    if isinstance(value, dict):
        return f"dict({', '.join(f'{name}={_text(item)}' for name, item in value.items())})"
    if isinstance(value, slice):
        return f"slice{_text((value.start, value.stop, value.step))}"
    if isinstance(value, _PLAIN):
        return repr(value)
    raise NotPortable(f"an argument of type {type(value).__name__}")
