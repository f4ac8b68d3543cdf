"""A step program to its file form and back."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from soda_compile.compiler.program import Call, Program
from soda_compile.errors import PackageError
from soda_compile.ir.structure import Cut
from soda_compile.packages.aot import SubgraphCode
from soda_compile.packages.manifest import CallEntry, FixedEntry, ProgramEntry, SubgraphCall, TensorEntry, dtype_name
from soda_compile.packages.sizes import Point, size_at
from soda_compile.packages.tensors import laid_out, named_dtype
from soda_compile.torch_internals.inductor_patches import Compiled

_Identity = tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def encode(program: Program, call: CallEntry, tensors: dict[str, torch.Tensor], prefix: str) -> ProgramEntry:
    """Return the file form of a program whose functions are ``SubgraphCode``.

    Its constants and coefficients go to ``tensors``, by names that begin with ``prefix``.
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
            str(register): TensorEntry(shape=list(cut.shape), stride=list(cut.stride), dtype=dtype_name(cut.dtype))
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
    )


def _identity(one: Call) -> _Identity:
    assert isinstance(one.function, SubgraphCode)
    return one.function.key, one.arguments, one.results, one.release


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
    """Return a program of its own for these sizes: branches of guidance keep their slots by program."""
    slots = {}
    for register, slot in entry.slots.items():
        dtype = named_dtype(slot.dtype)
        shape, stride = (tuple(size_at(size, values) for size in sizes) for sizes in (slot.shape, slot.stride))
        slots[int(register)] = Cut("slot", shape, stride, dtype, device, math.prod(shape) * dtype.itemsize)
    return replace(program, slots=slots)


def _check(entry: ProgramEntry, tensors: Mapping[str, torch.Tensor], code: Mapping[str, Compiled]) -> None:
    """Refuse a program that was put together wrongly, before it runs into native code."""
    registers = {int(register) for register in (*entry.slots, *entry.tensors)}
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
