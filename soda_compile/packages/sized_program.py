"""A step program of a loaded package: what calls it takes, at which sizes, and how they are bound to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from soda_compile.errors import PackageError
from soda_compile.packages.arguments import RETURN_DICT, decode_result, is_plain
from soda_compile.packages.manifest import CallEntry, ProgramEntry, TensorEntry
from soda_compile.packages.program_file import with_slots
from soda_compile.packages.sizes import Point, show
from soda_compile.packages.tensors import laid_out
from soda_compile.runtime.denoiser import PlannedDenoiser


class Mismatch(Exception):
    """The reason why a call is not one that was exported."""


@dataclass(frozen=True, eq=False)
class _Sized:
    """The program for fixed sizes: with slots of its own, and the strides that its arguments need."""

    planned: PlannedDenoiser
    strides: dict[str, tuple[int, ...]]


@dataclass(eq=False)
class SizedProgram:
    """A step program, for one set of shapes or for all in a range.

    Attributes:
        entry: The program as it was stored.
        planned: Runs it; its program has no slots yet.
        weights: The model's tensors by name.
        device: Where it runs.
    """

    entry: ProgramEntry
    planned: PlannedDenoiser
    weights: Mapping[str, torch.Tensor]
    device: torch.device
    _made: dict[tuple[int, ...], _Sized] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._inputs = [
            (read.name, self.weights[read.name] if read.kind == "weight" else None) for read in self.call.inputs
        ]

    @property
    def call(self) -> CallEntry:
        """Return how the denoiser is called."""
        return self.entry.call

    def sizes(self, leaves: Mapping[str, Any]) -> dict[str, int]:
        """Return the dynamic dimensions in a call with these arguments, none if all sizes are fixed.

        Raises:
            Mismatch: The call is not one that was exported.
        """
        values = self._read(leaves)
        for path, entry in self.call.arguments.items():
            value = leaves.get(path)
            if not isinstance(value, torch.Tensor):
                raise Mismatch(f"{path} is {_describe(value)}, but was a tensor")
            wanted = entry.shape_at(values)
            layout = TensorEntry.of(value)
            if path not in self.call.unused and (layout.dtype, layout.shape) != (entry.dtype, wanted):
                where = f" at {show(values)}" if wanted != entry.shape else ""
                raise Mismatch(f"{path} is {layout}, but was {entry}{where}")
        self._require_constants(leaves)
        return values

    def _read(self, leaves: Mapping[str, Any]) -> dict[str, int]:
        """Return the dimensions as the first argument that has them tells."""
        values: dict[str, int] = {}
        for name, dim in self.entry.dims.items():
            tensor, entry = leaves.get(dim.argument), self.call.arguments[dim.argument]
            if not isinstance(tensor, torch.Tensor) or tensor.ndim != len(entry.shape):
                raise Mismatch(f"{dim.argument} is {_describe(tensor)}, but was {entry}")
            values[name], rest = divmod(tensor.shape[dim.axis] - dim.shift, dim.scale)
            if rest or not dim.allows(values[name]):
                found = TensorEntry.of(tensor)
                raise Mismatch(f"{dim.argument} is {found}, but was {entry} with {name} {dim}")
        return values

    def _require_constants(self, leaves: Mapping[str, Any]) -> None:
        for path, value in leaves.items():
            if path in self.call.arguments or (path == RETURN_DICT and self._names_fields):
                continue
            if path not in self.call.constants:
                raise Mismatch(f"{path} is {_describe(value)}, but was not given")
            constant = self.call.constants[path]
            if not is_plain(value) or (list(value) if isinstance(value, tuple) else value) != constant:
                raise Mismatch(f"{path} is {_describe(value)}, but was {constant!r}")
        if missing := self.call.constants.keys() - leaves.keys():
            raise Mismatch(f"{min(missing)} is not given, but was {self.call.constants[min(missing)]!r}")

    @property
    def _names_fields(self) -> bool:
        """Return whether the result has named fields, so that it can be given as a tuple as well."""
        return isinstance(self.call.result, dict) and "record" in self.call.result

    def run(self, leaves: Mapping[str, Any], values: Point) -> Any:
        """Run the step that is due, for a call that fits, at these sizes."""
        sized = self._at(values)
        inputs = [
            self._argument(name, leaves, sized.strides[name]) if weight is None else weight
            for name, weight in self._inputs
        ]
        result = decode_result(self.call.result, sized.planned(*inputs))
        return result.to_tuple() if self._names_fields and leaves.get(RETURN_DICT) is False else result

    def _at(self, values: Point) -> _Sized:
        key = tuple(values.values())
        if key not in self._made:
            program = with_slots(self.planned.program, self.entry, self.device, values)
            strides = {path: tuple(entry.stride_at(values)) for path, entry in self.call.arguments.items()}
            # Generations know their program by identity: all threads must take the same one.
            self._made.setdefault(key, _Sized(replace(self.planned, program=program), strides))
        return self._made[key]

    def _argument(self, path: str, leaves: Mapping[str, Any], stride: tuple[int, ...]) -> torch.Tensor:
        """Return the tensor in the layout that the code was compiled for; a copy where an expanded tensor is passed."""
        value: torch.Tensor = leaves[path]
        if value.device != self.device:
            raise PackageError(f"{path} lies on {value.device}, the package runs on {self.device}; move it there")
        return laid_out(value, stride, self.device)


def _describe(value: Any) -> str:
    return f"a tensor {TensorEntry.of(value)}" if isinstance(value, torch.Tensor) else repr(value)
