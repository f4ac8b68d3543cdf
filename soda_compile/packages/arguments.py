"""Arguments and results of a call as plain structures: named leaves going in, a JSON form coming out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from soda_compile.errors import PackageError

Plain = None | bool | int | float | str | list[Any] | dict[str, Any]
RETURN_DICT = "return_dict"


def flatten(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path: ``{"added": {"size": x}}`` gives ``{"added.size": x}``. Empty containers are leaves."""
    return dict(leaf for name, value in arguments.items() for leaf in _leaves(name, value))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(f"{path}.{key}", item)
    elif isinstance(value, list | tuple) and value:
        for index, item in enumerate(value):
            yield from _leaves(f"{path}.{index}", item)
    else:
        yield path, value


def copy_tensors(value: Any) -> Any:
    """The same structure with a copy of each tensor, so that each leaf is an object of its own; layouts are kept."""
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, _dense(value), dtype=value.dtype, device=value.device).copy_(value)
    if isinstance(value, Mapping):
        return {key: copy_tensors(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copy_tensors(item) for item in value)
    return value


def _dense(value: torch.Tensor) -> tuple[int, ...]:
    """Strides of a compact tensor with the same order of axes; an expanded axis becomes a real one."""
    return torch.empty_like(value, memory_format=torch.preserve_format).stride()


def is_plain(value: Any) -> bool:
    """Whether JSON gives the value back as it is."""
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
        """The fields that are not None."""
        return tuple(self.values())


def encode_result(value: Any, position: Callable[[torch.Tensor], int]) -> Plain:
    """The form of a result: a graph output as its number, containers as ``{"tuple": [...]}`` and so on.

    Raises:
        PackageError: For anything but tensors, None, tuples, lists, and mappings or dataclasses with such fields.
    """
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        return position(value)
    if is_dataclass(value) and not isinstance(value, type):
        named = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"record": {name: encode_result(item, position) for name, item in named.items()}}
    if isinstance(value, Mapping):
        return {"record": {str(name): encode_result(item, position) for name, item in value.items()}}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [encode_result(item, position) for item in value]}
    raise PackageError(f"the denoiser returns a {type(value).__name__}; a package can give tensors and containers only")


def decode_result(form: Any, outputs: Sequence[Any]) -> Any:
    """The result for the values of the graph's outputs."""
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


def encode_signature(signature: inspect.Signature) -> list[dict[str, Plain]]:
    """The parameters of a forward, with those defaults that JSON can hold."""
    entries: list[dict[str, Plain]] = []
    for parameter in signature.parameters.values():
        entry: dict[str, Plain] = {"name": parameter.name, "kind": parameter.kind.name}
        if parameter.default is not parameter.empty and is_plain(parameter.default):
            entry["default"] = parameter.default
        entries.append(entry)
    return entries


def decode_signature(entries: Sequence[Mapping[str, Any]]) -> inspect.Signature:
    """The signature that ``encode_signature`` described."""
    return inspect.Signature(
        [
            inspect.Parameter(
                entry["name"],
                inspect._ParameterKind[entry["kind"]],
                default=entry.get("default", inspect.Parameter.empty),
            )
            for entry in entries
        ]
    )
