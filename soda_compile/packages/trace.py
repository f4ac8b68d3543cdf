"""A captured denoiser and how calls of it are bound to the graph."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from soda_compile.capture.model import capture_model
from soda_compile.compiler.analyse import analyse
from soda_compile.errors import CaptureError, PackageError
from soda_compile.ir.structure import Structure
from soda_compile.packages.arguments import copy_tensors, encode_result, encode_signature, flatten, is_plain
from soda_compile.packages.manifest import CallEntry, InputEntry, TensorEntry, WeightEntry
from soda_compile.packages.sizes import AxisSize
from soda_compile.packages.spaces import Space
from soda_compile.torch_internals.size_expressions import Expression
from soda_compile.torch_internals.tracing import SizeGuards, mark_dynamic

ExampleInputs = Mapping[str, Any] | tuple[Any, ...]


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and (one.data_ptr() == other.data_ptr() or torch.equal(one, other))


@dataclass(eq=False)
class ModelTensors:
    """The tensors of a model that its graphs read, by name; each once, whatever the number of graphs.

    Attributes:
        tensors: The tensors.
        entries: What the manifest says of them.
    """

    model: torch.nn.Module
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    entries: dict[str, WeightEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        saved = self.model.state_dict(keep_vars=True).keys()
        self._names: dict[int, list[tuple[str, str]]] = {}
        kinds = {"parameter": self.model.named_parameters, "buffer": self.model.named_buffers}
        for kind, named in kinds.items():
            for name, tensor in named(remove_duplicate=False):
                self._names.setdefault(id(tensor), []).append((name, kind if name in saved else "own"))

    def name(self, tensor: torch.Tensor, path: str) -> str:
        """Return the name of a tensor that a graph reads; ``path`` is where Dynamo found one that is not registered."""
        (name, kind), *others = self._names.setdefault(id(tensor), [(path, "own")])
        if name not in self.tensors:
            self.tensors[name] = tensor.detach()
            self.entries[name] = WeightEntry(
                **TensorEntry.of(tensor).model_dump(),
                kind=kind,  # type: ignore[arg-type]
                aliases=[alias for alias, _ in others],
            )
        elif not _same(self.tensors[name], tensor):
            raise PackageError(f"{name} is another tensor at other sizes, and a package holds one; export one size")
        return name

    def of_kind(self, *kinds: str) -> dict[str, torch.Tensor]:
        """Return the tensors of these kinds."""
        return {name: tensor for name, tensor in self.tensors.items() if self.entries[name].kind in kinds}

    @property
    def device(self) -> torch.device:
        """Return where they all lie.

        Raises:
            PackageError: There is no parameter, or there are several devices.
        """
        devices = {tensor.device for tensor in self.tensors.values()}
        if not self.of_kind("parameter"):
            raise PackageError("the denoiser has no parameters, so its calls cannot be told from another model's")
        if len(devices) != 1:
            raise PackageError(f"the denoiser lies on {len(devices)} devices: {', '.join(map(str, devices))}")
        return devices.pop()


@dataclass(frozen=True, eq=False)
class Traced:
    """One captured call.

    Attributes:
        structure: The model.
        call: How it is called.
        symbols: The symbols of its sizes as expressions in the dimensions, by name.
        guards: What Dynamo takes for granted about sizes, and what their names stand for in the dimensions.
    """

    structure: Structure
    call: CallEntry
    symbols: Mapping[str, Expression]
    guards: tuple[SizeGuards, Mapping[Any, Expression]]


def trace(
    model: torch.nn.Module,
    bound: inspect.BoundArguments,
    weights: ModelTensors,
    timestep_input: str | None,
    space: Space,
) -> Traced:
    """Capture one call of a denoiser, and how it is called; run it once, in eager mode.

    Args:
        model: The denoiser.
        bound: Inputs of one call, from ``bind_example``.
        weights: Takes the model's tensors.
        timestep_input: Which input carries the timestep.
        space: The sizes that stay symbolic.

    Raises:
        CaptureError: If Dynamo cannot capture the model as one graph, or not with these sizes symbolic.
        PackageError: If the call takes or returns what a package cannot express.
    """
    arguments = copy_tensors(dict(bound.arguments))
    bound.arguments.update(arguments)
    leaves = flatten(arguments)
    for path in space.axes:
        for axis in space.varying_axes(path):
            mark_dynamic(leaves[path], axis)
    captured = capture_model(model, bound.args, bound.kwargs, symbolic=bool(space.varying))
    run, *others = captured.runs
    if others or run.captured is None:
        raise CaptureError(
            f"{type(model).__name__} is captured in {len(captured.runs)} graphs, but a package holds one; "
            "TORCH_LOGS=graph_breaks tells where it breaks"
        )
    structure = analyse(run.captured)
    tensors = {path: value for path, value in leaves.items() if isinstance(value, torch.Tensor)}
    passed = {id(value): path for path, value in tensors.items()}
    size_of = _size_told(run.inputs, structure.paths, passed, space)
    places = structure.sizes.places if structure.sizes is not None else {}
    symbols = {name: size_of(place.position, place.axis) for name, place in places.items()}
    guards = (run.guards, {place: size_of(*place) for place in run.guards.symbols})
    structure, values = _without_sizes(structure, run.inputs)
    inputs = _inputs(values, structure.paths, passed, weights)
    read = {entry.name for entry in inputs if entry.kind == "argument"}
    constants = {path: value for path, value in leaves.items() if path not in tensors}
    for path, value in constants.items():
        if not is_plain(value):
            raise PackageError(
                f"argument {path} is a {type(value).__name__}; a package takes tensors, numbers, strings, None and "
                "containers of these"
            )
    call = CallEntry(
        signature=encode_signature(bound.signature),
        arguments={path: _layout(value, space.varying_axes(path)) for path, value in tensors.items()},
        unused=[path for path in tensors if path not in read],
        constants=constants,
        inputs=inputs,
        timestep=structure.paths.index(timestep_input) if timestep_input in structure.paths else None,
        result=encode_result(captured.result, lambda tensor: _position(run.outputs, tensor)),
    )
    return Traced(structure, call, symbols, guards)


def bind_example(model: torch.nn.Module, example: ExampleInputs) -> inspect.BoundArguments:
    """Return the example inputs as arguments of the model's forward, defaults among them.

    Raises:
        PackageError: If they do not fit it.
    """
    signature = inspect.signature(type(model).forward.__get__(model))
    try:
        bound = signature.bind(**example) if isinstance(example, Mapping) else signature.bind(*example)
    except TypeError as error:
        raise PackageError(f"the example inputs do not fit the denoiser's forward: {error}") from None
    bound.apply_defaults()
    return bound


def _inputs(
    inputs: Sequence[Any], paths: Sequence[str], passed: Mapping[int, str], weights: ModelTensors
) -> list[InputEntry]:
    entries = []
    for value, path in zip(inputs, paths, strict=True):
        if not isinstance(value, torch.Tensor):
            raise PackageError(f"{path} is the number {value!r} in the graph; pass a tensor for it")
        if id(value) in passed:
            entries.append(InputEntry(kind="argument", name=passed[id(value)]))
        else:
            entries.append(InputEntry(kind="weight", name=weights.name(value, path)))
    return entries


def _size_told(
    inputs: Sequence[Any], paths: Sequence[str], passed: Mapping[int, str], space: Space
) -> Callable[[int, int | None], Expression]:
    """Return what gives the size of an input's axis in the dimensions, by their positions."""

    def size_of(position: int, axis: int | None) -> Expression:
        path = passed.get(id(inputs[position]))
        size = space.varying_axes(path).get(axis) if path and axis is not None else None
        if size is None:
            raise PackageError(f"a size that varies is told by {paths[position]}, and by no argument")
        return size.expression

    return size_of


def _without_sizes(structure: Structure, inputs: Sequence[Any]) -> tuple[Structure, list[Any]]:
    """Leave out the inputs that are sizes of others, which nothing reads where sizes are symbolic."""
    if structure.sizes is None:
        return structure, list(inputs)
    kept = [number for number, value in enumerate(inputs) if isinstance(value, torch.Tensor)]
    left = replace(
        structure,
        inputs=tuple(structure.inputs[number] for number in kept),
        paths=tuple(structure.paths[number] for number in kept),
        parameters=tuple(structure.parameters[number] for number in kept),
    )
    return left, [inputs[number] for number in kept]


def _layout(value: torch.Tensor, axes: Mapping[int, AxisSize]) -> TensorEntry:
    """Return the layout of a dense tensor, some sizes of which vary."""
    if not axes:
        return TensorEntry.of(value)
    shape = [axes[axis].expression if axis in axes else size for axis, size in enumerate(value.shape)]
    stride: list[Any] = [1] * value.ndim
    inside = 1
    for axis in sorted(range(value.ndim), key=lambda axis: (value.stride(axis), -axis)):
        stride[axis], inside = inside, inside * shape[axis]
    return TensorEntry.written(shape, stride, value.dtype, {})


def _position(outputs: Sequence[Any], tensor: torch.Tensor) -> int:
    for index, value in enumerate(outputs):
        if value is tensor:
            return index
    raise PackageError("the denoiser returns a tensor that its graph does not make, such as an input; return a copy")
