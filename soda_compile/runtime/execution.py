"""Execution of the calls of a program."""

from collections.abc import Sequence
from typing import Any

from soda_compile.compiler.program import Program


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
            results = call.function(*[registers[index] for index in call.arguments])
            for index, value in zip(call.results, results, strict=True):
                if in_place and index in program.slots:
                    registers[index].copy_(value)
                else:
                    registers[index] = value
            for index in call.release:
                registers[index] = None
        return [None if index is None else registers[index] for index in program.outputs]
    finally:
        registers[: len(inputs)] = [None] * len(inputs)  # slots stay; the caller's tensors must not


def run_once(program: Program, inputs: Sequence[Any]) -> list[Any]:
    """Run a program of one step that keeps nothing in slots; return its outputs."""
    return run_step(program, 0, [program.tensors.get(number) for number in range(program.registers)], inputs)
