"""A step program to its file form and back."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from soda_compile.compiler.program import Call, Program
from soda_compile.errors import PackageError
from soda_compile.ir.structure import Cut
from soda_compile.packages.aot import SubgraphCode
from soda_compile.packages.manifest import (
    CallEntry,
    DimEntry,
    FixedEntry,
    ProgramEntry,
    SubgraphCall,
    TensorEntry,
)  # fmt: skip
from soda_compile.packages.sizes import Point, size_at, written
from soda_compile.packages.spaces import Space
from soda_compile.packages.tensors import laid_out, named_dtype
from soda_compile.torch_internals.inductor_patches import Compiled
from soda_compile.torch_internals.size_expressions import Expression

_Identity = tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def encode(
    program: Program,
    call: CallEntry,
    tensors: dict[str, torch.Tensor],
    prefix: str,
    symbols: Mapping[str, Expression],
    space: Space,
    dims: Mapping[str, tuple[int, int]],
) -> ProgramEntry:
    """Return the file form of a program whose functions are ``SubgraphCode``.

    Args:
        program: The program.
        call: How it is called.
        tensors: Takes its constants and coefficients, by names that begin with ``prefix``.
        prefix: See there.
        symbols: Symbols of its sizes as expressions in the dimensions, by name.
        space: The sizes that it is for.
        dims: Ranges of the dimensions that it is captured with.
    """
    numbers: dict[_Identity, int] = {}
    steps = [[numbers.setdefault(_identity(one), len(numbers)) for one in step] for step in program.steps]
    names = {register: f"{prefix}{register}" for register in program.tensors}
    tensors |= {names[register]: tensor for register, tensor in program.tensors.items()}
    return ProgramEntry(
        call=call,
        registers=program.registers,
        outputs=list(program.outputs),
        slots={
            str(register): TensorEntry.written(cut.shape, cut.stride, cut.dtype, symbols)
            for register, cut in program.slots.items()
        },
        tensors={str(register): name for register, name in names.items()},
        layouts={str(register): FixedEntry.of(tensor) for register, tensor in program.tensors.items()},
        calls=[
            SubgraphCall(piece=key, arguments=list(arguments), results=list(results), release=list(release))
            for key, arguments, results, release in numbers
        ],
        steps=steps,
        flops=list(program.flops),
        sizes={str(register): written(size.expression, symbols) for register, size in program.sizes.items()},
        dims=dict(_dims(call, space, dims)),
    )


def _dims(call: CallEntry, space: Space, dims: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, DimEntry]]:
    """Yield each dimension with the first argument that tells it.

    Raises:
        PackageError: If none that the denoiser reads does.
    """
    for name, (low, high) in dims.items():
        read = (path for path in space.axes if path not in call.unused)
        found = [(path, axis, size) for path in read for axis, size in space.axes[path].items() if size.dim == name]
        if not found:
            raise PackageError(f"no tensor that the denoiser reads has the size {name}")
        path, axis, size = found[0]
        without = sorted(space.without.get(name, ()))
        place = DimEntry(
            low=low, high=high, argument=path, axis=axis, scale=size.scale, shift=size.shift, without=without
        )
        yield name, place


def _identity(one: Call) -> _Identity:
    assert isinstance(one.function, SubgraphCode)
    others = len(one.arguments) - one.function.sizes
    return one.function.key, one.arguments[others:] + one.arguments[:others], one.results, one.release


def decode(
    entry: ProgramEntry, tensors: Mapping[str, torch.Tensor], code: Mapping[str, Compiled], device: torch.device
) -> Program:
    """Return the program, with compiled functions in place, and still without slots: ``with_slots`` adds them.

    Raises:
        PackageError: The entry names a register, a tensor or a subgraph that does not exist.
    """
    _check(entry, tensors, code)
    calls = [
        Call(code[call.piece], tuple(call.arguments), tuple(call.results), tuple(call.release)) for call in entry.calls
    ]
    return Program(
        steps=tuple(tuple(calls[index] for index in step) for step in entry.steps),
        outputs=tuple(entry.outputs),
        registers=entry.registers,
        tensors={
            int(register): laid_out(tensors[name], tuple(entry.layouts[register].stride), device)
            for register, name in entry.tensors.items()
        },
        slots={},
        flops=tuple(entry.flops),
    )


def with_slots(program: Program, entry: ProgramEntry, device: torch.device, values: Point) -> Program:
    """Return a program of its own for these sizes: branches of guidance keep their slots by program.

    Code takes a size as that of an empty tensor.
    """
    slots = {}
    for register, slot in entry.slots.items():
        dtype = named_dtype(slot.dtype)
        shape, stride = tuple(slot.shape_at(values)), tuple(slot.stride_at(values))
        slots[int(register)] = Cut("slot", shape, stride, dtype, device, math.prod(shape) * dtype.itemsize)
    sizes = {
        int(register): torch.empty(size_at(size, values), 0, device=device) for register, size in entry.sizes.items()
    }
    return replace(program, slots=slots, tensors=program.tensors | sizes)


def _check(entry: ProgramEntry, tensors: Mapping[str, torch.Tensor], code: Mapping[str, Compiled]) -> None:
    """Refuse a program that was put together wrongly, before it runs into native code."""
    registers = {int(register) for register in (*entry.slots, *entry.tensors, *entry.sizes)}
    for call in entry.calls:
        registers |= {*call.arguments, *call.results, *call.release}
        if call.piece not in code:
            raise PackageError(f"the step program calls subgraph {call.piece}, which the package does not hold")
    registers |= {register for register in entry.outputs if register is not None}
    if registers and not 0 <= min(registers) <= max(registers) < entry.registers:
        raise PackageError(f"the step program uses registers up to {max(registers)}, but has {entry.registers}")
    if any(not 0 <= index < len(entry.calls) for step in entry.steps for index in step):
        raise PackageError("the step program lists a call that it does not define")
    missing = sorted(set(entry.tensors.values()) - set(tensors))
    if missing:
        raise PackageError(f"the step program needs the tensor {missing[0]}, which the package does not hold")
