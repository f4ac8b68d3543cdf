"""The JSON files of a package: what is inside, how the denoiser is called, and its step program."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict

from soda_compile.packages.sizes import Point, size_at, written
from soda_compile.torch_internals.size_expressions import Expression

PLAN = "extra/plan.json"
REGIONS = "extra/regions.json"
WEIGHTS = "extra/weights.safetensors"
TENSORS = "extra/tensors.safetensors"
CODE = "data/aotinductor/"


def program_member(number: int) -> str:
    """Return where the step program of a signature lies."""
    return f"extra/programs/{number}.json"


class Entry(BaseModel):
    """Refuses unknown keys and wrong types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def to_bytes(self) -> bytes:
        """Return the JSON of the file."""
        return self.model_dump_json().encode()


class Environment(Entry):
    """The environment in which a package was made.

    Attributes:
        torch: Version of torch, with the build ("2.13.0+cpu").
        soda: Version of soda_compile.
        system: Operating system and machine ("linux x86_64").
        instructions: Instruction sets of the CPU that compiled code may use.
        device: Device type.
        device_name: Name of the device, for information; empty for a CPU.
        capability: Compute capability of a CUDA device, as "9.0"; empty otherwise.
    """

    torch: str
    soda: str
    system: str
    instructions: list[str]
    device: str
    device_name: str
    capability: str


class TensorEntry(Entry):
    """Layout of a tensor: sizes and strides in elements, dtype by name.

    Where a program is for many sizes, they are text: how they follow from its dimensions, ``4*height*width``.
    """

    shape: list[int | str]
    stride: list[int | str]
    dtype: str

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Self:
        """Return the layout of a tensor."""
        return cls(shape=list(tensor.shape), stride=list(tensor.stride()), dtype=dtype_name(tensor.dtype))

    @classmethod
    def written(
        cls, shape: Sequence[Any], stride: Sequence[Any], dtype: torch.dtype, symbols: Mapping[str, Expression]
    ) -> Self:
        """Return a layout whose sizes may follow from the dimensions, see ``sizes.written``."""
        sizes, strides = ([written(size, symbols) for size in layout] for layout in (shape, stride))
        return cls(shape=sizes, stride=strides, dtype=dtype_name(dtype))

    def shape_at(self, values: Point) -> list[int]:
        """Return the shape where the dimensions have these values."""
        return [size_at(size, values) for size in self.shape]

    def stride_at(self, values: Point) -> list[int]:
        """Return the strides where the dimensions have these values."""
        return [size_at(size, values) for size in self.stride]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"  # float32[batch, 4, 2*height]


class FixedEntry(TensorEntry):
    """Layout of a tensor that is the same for all sizes."""

    shape: list[int]  # type: ignore[assignment]
    stride: list[int]  # type: ignore[assignment]


class WeightEntry(FixedEntry):
    """A tensor of the model, stored once.

    ``own`` are tensors that no checkpoint has, such as tables of positions; they are always inside the package.
    ``aliases`` are further names of the same tensor.
    """

    kind: Literal["parameter", "buffer", "own"]
    aliases: list[str] = []


class InputEntry(Entry):
    """An input register: an argument of the call by path, or a tensor of the model by name."""

    kind: Literal["argument", "weight"]
    name: str


class CallEntry(Entry):
    """One call of the denoiser, for one set of shapes.

    Attributes:
        signature: Parameters of its forward.
        arguments: Tensor arguments by path.
        unused: Tensor arguments that the graph does not read.
        constants: All other arguments by path; the code holds for these values only.
        inputs: What the input registers take, in order.
        timestep: Index of the input that carries the timestep, if the plan knows it.
        result: The form of the result; numbers are positions in the program's outputs.
    """

    signature: list[dict[str, Any]]
    arguments: dict[str, TensorEntry]
    unused: list[str]
    constants: dict[str, Any]
    inputs: list[InputEntry]
    timestep: int | None
    result: Any


class SubgraphCall(Entry):
    """One compiled call: the subgraph's key, and registers for its arguments, its results and what is free after it."""

    piece: str  # the name in files
    arguments: list[int]
    results: list[int]
    release: list[int]


class DimEntry(Entry):
    """A dimension of a program for many sizes.

    Attributes:
        low: Its smallest value.
        high: Its largest value.
        argument: Path of an argument that tells it.
        axis: The axis whose size does: ``scale`` times the dimension, plus ``shift``.
        scale: See there.
        shift: See there.
        without: Values between that the program is not for.
    """

    low: int
    high: int
    argument: str
    axis: int
    scale: int
    shift: int
    without: list[int] = []

    def __str__(self) -> str:
        but = f", but not {', '.join(map(str, self.without))}" if self.without else ""
        return f"from {self.low} to {self.high}{but}"

    def allows(self, value: int) -> bool:
        """Return whether the program is for this value."""
        return self.low <= value <= self.high and value not in self.without


class ProgramEntry(Entry):
    """A step program (``soda_compile.compiler.program.Program``), with equal calls listed once.

    Attributes:
        call: How the denoiser is called.
        registers: Number of registers.
        outputs: Registers to return.
        slots: Layout of the slots by register.
        tensors: Registers of constants and coefficients, with their names in ``tensors.safetensors``.
        layouts: Layout of these tensors by register.
        calls: All distinct calls.
        steps: For each step the indices of its calls.
        flops: For each step the FLOPs of what runs; for many sizes, in the middle of the ranges.
        sizes: For a program for many sizes, registers that tell code a size, as the first of an empty tensor's.
        dims: For such a program, its dimensions.
    """

    call: CallEntry
    registers: int
    outputs: list[int | None]
    slots: dict[str, TensorEntry]
    tensors: dict[str, str]
    layouts: dict[str, FixedEntry]
    calls: list[SubgraphCall]
    steps: list[list[int]]
    flops: list[int]
    sizes: dict[str, int | str] = {}
    dims: dict[str, DimEntry] = {}


class MemberEntry(Entry):
    """Size and checksum of a member."""

    size_bytes: int
    sha256: str


class Manifest(Entry):
    """The description of a package, and what it needs.

    Attributes:
        format: Version of the package format.
        environment: Where it was made.
        model: Class name of the denoiser.
        config: Its configuration, as pipelines read it.
        weights: Its tensors by name.
        weights_inside: Whether parameters and buffers are in the package.
        plan_digest: Digest of the plan.
        scheduler: Class name of the noise scheduler that the plan is for.
        steps: Number of steps.
        programs: Number of step programs, one for each set of shapes.
        members: All other files.
    """

    format: Literal["soda-package/3"]
    environment: Environment
    model: str
    config: dict[str, Any] | None
    weights: dict[str, WeightEntry]
    weights_inside: bool
    plan_digest: str
    scheduler: str | None
    steps: int
    programs: int
    members: dict[str, MemberEntry]


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
