"""Execution of the calls of a program."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch

from soda_compile.compiler.program import Program, SharedMemory


def run_step(
    program: Program, step: int, registers: list[Any], inputs: Sequence[Any], *, in_place: bool = False
) -> list[Any]:
    """Run the calls of one step.

    Args:
        program: The program.
        step: Number of the step.
        registers: Values by register; slots among them keep their place in the list from step to step.
        inputs: The inputs of the program, in order.
        in_place: Whether slots keep their addresses too: a new value is copied there, not put in its place.

    Returns:
        The outputs of the program.
    """
    registers[: len(inputs)] = inputs
    try:
        for call in program.steps[step]:
            results = call.function(*call.read(registers))
            for index, value in zip(call.results, results, strict=True):
                if in_place and index in program.slots:
                    registers[index].copy_(value)
                else:
                    registers[index] = value
            for index in call.release:
                registers[index] = None
        return [None if index is None else registers[index] for index in program.outputs]
    finally:
        forget_inputs(registers, len(inputs))


def forget_inputs(registers: list[Any], count: int) -> None:
    """Empty the registers of the inputs: slots stay from step to step, the caller's tensors must not."""
    registers[:count] = _nothing(count)


@cache
def _nothing(count: int) -> tuple[None, ...]:
    return (None,) * count  # hundreds of inputs: making them anew for each step takes longer than putting them in place


def run_owned(
    program: Program, step: int, registers: list[Any], inputs: Sequence[Any], *, in_place: bool = False
) -> list[Any]:
    """Run the calls of one step, see ``run_step``; the caller may write to inputs and outputs afterwards.

    Graphs return kept values and views of them as they are, and keep views of inputs. Which ones share memory follows
    from the code, so it is looked up once for each distinct step.
    """
    outputs = run_step(program, step, registers, inputs, in_place=in_place)
    kind = program.distinct_steps[step]
    shared = program.shared_memory.get(kind)
    if shared is None:
        shared = program.shared_memory[kind] = _shared_memory(program, registers, inputs, outputs)
    for number in shared.outputs:
        outputs[number] = outputs[number].clone()
    for number in shared.slots:
        registers[number] = registers[number].clone()
    return outputs


def run_once(program: Program, inputs: Sequence[Any]) -> list[Any]:
    """Run a program of one step that keeps nothing in slots; return its outputs."""
    return run_step(program, 0, program.empty_registers(), inputs)


def _shared_memory(
    program: Program, registers: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any]
) -> SharedMemory:
    given = addresses(inputs)
    slots = tuple(number for number in program.slots if addresses([registers[number]]) & given)
    kept = addresses(registers[number] for number in (*program.slots, *program.tensors))
    kept |= addresses(inputs[len(inputs) - program.prepared :])
    return SharedMemory(
        outputs=tuple(number for number, value in enumerate(outputs) if addresses([value]) & kept), slots=slots
    )


def addresses(values: Iterable[Any]) -> set[int]:
    """Return where the tensors among some values keep their numbers."""
    tensors = (value for value in values if isinstance(value, torch.Tensor))
    return {tensor.untyped_storage().data_ptr() for tensor in tensors} - {0}
