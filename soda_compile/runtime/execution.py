"""Runs the calls of a program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from soda_compile.compiler.program import Program


def run_step(
    program: Program,
    step: int,
    registers: list[Any],
    inputs: Sequence[Any],
    given: Sequence[Any] | None = None,
    *,
    in_place: bool = False,
) -> list[Any]:
    """Runs the calls of one step.

    Args:
        program: What is run.
        step: The step.
        registers: Of the stream; slots among them keep their place in the list.
        inputs: The inputs of the captured graph, in order.
        given: The step's conditioning, in the order of ``program.ahead.values``; None to compute it.
        in_place: Whether slots keep their addresses too: a new value is copied there, not put in its place.

    Returns:
        The outputs of the captured graph.
    """
    registers[: len(inputs)] = inputs
    calls = program.steps[step]
    if given is not None:
        assert program.ahead is not None
        calls = calls[program.ahead.skip[step] :]
        for (index, _), value in zip(program.ahead.values, given, strict=True):
            registers[index] = value
    try:
        for call in calls:
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


def run_ahead(
    program: Program, inputs: Sequence[Any], conditions: Sequence[torch.Tensor]
) -> list[tuple[torch.Tensor, ...]]:
    """Computes the conditioning of all steps.

    Args:
        program: A program with conditioning apart.
        inputs: The inputs of the captured graph, in order.
        conditions: For each of ``program.ahead.reads`` what it is at all steps, [steps, ...].

    Returns:
        For each step what ``run_step`` takes as given.
    """
    assert program.ahead is not None
    values = dict(enumerate(inputs)) | program.tensors
    values |= {wide: value for (_, wide), value in zip(program.ahead.reads, conditions, strict=True)}
    for call in program.ahead.calls:
        results = call.function(*[values[index] for index in call.arguments])
        values |= zip(call.results, results, strict=True)
    return list(zip(*(values[wide].unbind(0) for _, wide in program.ahead.values), strict=True))
