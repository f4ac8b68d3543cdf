"""Arguments and results of a call as plain structures: named leaves going in, a JSON form coming out."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from soda_compile.errors import PackageError

RETURN_DICT = "return_dict"


def map_leaves(function: Callable[[str, Any], Any], value: Any, path: str = "") -> Any:
    """Return the same structure with ``function(path, leaf)`` for each leaf. Empty containers are leaves."""
    prefix = f"{path}." if path else ""
    if isinstance(value, Mapping) and value:
        return {key: map_leaves(function, item, f"{prefix}{key}") for key, item in value.items()}
    if isinstance(value, list | tuple) and value:
        return type(value)(map_leaves(function, item, f"{prefix}{index}") for index, item in enumerate(value))
    return function(path, value)


def flatten(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return leaves by path: ``{"added": {"size": x}}`` gives ``{"added.size": x}``."""
    leaves: dict[str, Any] = {}
    for name, value in arguments.items():
        map_leaves(leaves.__setitem__, value, name)
    return leaves


def copy_tensors(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with a dense copy of each tensor, so that each leaf is an object of its own.

    The order of axes is kept; an expanded axis becomes a real one.
    """

    def copy(_: str, value: Any) -> Any:
        return torch.empty_like(value).copy_(value) if isinstance(value, torch.Tensor) else value

    return {name: map_leaves(copy, value) for name, value in arguments.items()}


def is_plain(value: Any) -> bool:
    """Return whether JSON gives the value back as it is."""
    if isinstance(value, list | tuple | dict):
        return not value
    return value is None or isinstance(value, bool | int | float | str)


class Record(dict[str, Any]):
    """A model output with named fields, read as diffusers outputs are: by attribute, by name or by position.

    Fields that are None can be read as attributes only.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__({name: value for name, value in values.items() if value is not None})
        self._all = dict(values)

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_all", {})
        if name not in values:
            raise AttributeError(f"this output has no field {name!r}, only {', '.join(values)}")
        return values[name]

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that are not None."""
        return tuple(self.values())


def encode_result(value: Any, position: Callable[[torch.Tensor], int]) -> Any:
    """Return the form of a result: a graph output as its number, containers as ``{"tuple": [...]}`` and so on.

    Raises:
        PackageError: For anything but tensors, None, tuples, lists, and mappings or dataclasses with such fields.
    """
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        return position(value)
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {"record": {str(name): encode_result(item, position) for name, item in value.items()}}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [encode_result(item, position) for item in value]}
    raise PackageError(f"the denoiser returns a {type(value).__name__}; a package can give tensors and containers only")


def decode_result(form: Any, outputs: Sequence[Any]) -> Any:
    """Return the result for the values of the graph's outputs."""
    match form:
        case None:
            return None
        case int():
            return outputs[form]
        case {"tuple": items}:
            return tuple(decode_result(item, outputs) for item in items)
        case {"list": items}:
            return [decode_result(item, outputs) for item in items]
        case {"record": named}:
            return Record({name: decode_result(item, outputs) for name, item in named.items()})
    raise PackageError(f"the package describes a result as {form!r}, which is unknown; export again")


def encode_signature(signature: inspect.Signature) -> list[dict[str, Any]]:
    """Return the parameters of a forward, with those defaults that JSON can hold."""
    entries: list[dict[str, Any]] = []
    for parameter in signature.parameters.values():
        entry: dict[str, Any] = {"name": parameter.name, "kind": parameter.kind.name}
        if parameter.default is not parameter.empty and is_plain(parameter.default):
            entry["default"] = parameter.default
        entries.append(entry)
    return entries


def decode_signature(entries: Sequence[Mapping[str, Any]]) -> inspect.Signature:
    """Return the signature that ``encode_signature`` described."""
    kinds, empty = inspect._ParameterKind, inspect.Parameter.empty
    return inspect.Signature(
        [
            inspect.Parameter(entry["name"], kinds[entry["kind"]], default=entry.get("default", empty))
            for entry in entries
        ]
    )
