"""Separation of constants: what depends on neither the latents nor the timestep stays the same over a generation.

Text projections, keys and values of cross-attentions, side information of time series: computed once in a generation,
their values are further inputs of the step program.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from soda_compile.compiler.dependence import Dependence
from soda_compile.compiler.separation import separate
from soda_compile.ir.graphs import results_of
from soda_compile.ir.structure import Structure
from soda_compile.torch_internals.size_expressions import comparable

LEAST = 0.01
"""Share of a full step's work from which on constants are worth the memory of their values."""


def separate_constants(structure: Structure, timestep: str | None = None) -> tuple[Structure, Structure] | None:
    """Split a denoiser into the constants and the remainder, which takes their values after the other inputs.

    Which inputs change is known when it runs; here all are taken for constant but the latents, which have the shape
    of an output, and numbers for each sample. An input that does change costs what it costs without this.

    Args:
        structure: The denoiser.
        timestep: Path of the input that carries the timestep, where it is known.

    Returns:
        The constants, with their values as outputs, and the remainder; None if the latents cannot be told, or the
        constants are too little work.
    """
    latents = _latents(structure)
    if not latents:
        return None
    changing = latents | {
        name for name, path in zip(structure.inputs, structure.paths, strict=True) if path == timestep
    }

    def level_of(name: str, value: Any) -> Dependence:
        constant = isinstance(value, torch.Tensor) and value.ndim > 1 and name not in changing
        return Dependence.CONSTANT if constant else Dependence.SAMPLE

    split = separate(structure, Dependence.CONSTANT, level_of)
    return None if split is None or split[0].flops < LEAST * structure.flops else split


def _latents(structure: Structure) -> set[str]:
    """Return the inputs of the shape of an output; or else those that differ from one in one size, of channels."""
    made = {
        name: node.meta["val"]
        for call in structure.calls
        for name, node in zip(call.outputs, results_of(call.block.module.graph), strict=True)
    }
    returned = [made[name] for name in structure.outputs if name in made]
    outputs = [comparable(value.shape) for value in returned if isinstance(value, torch.Tensor)]
    owned = {name for name, mine in zip(structure.inputs, structure.parameters, strict=True) if mine}
    shapes = {
        name: comparable(value.shape)
        for name in structure.inputs
        if name not in owned
        and isinstance(value := structure.read_values.get(name), torch.Tensor)
        and (value.is_floating_point() or value.is_complex())
        and value.ndim > 1
    }
    exact = {name for name, shape in shapes.items() if shape in outputs}
    return exact or {name for name, shape in shapes.items() if any(_alike(shape, other) for other in outputs)}


def _alike(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Return whether two shapes have the same sizes but one, in any order."""
    return len(one) == len(other) and (Counter(one) - Counter(other)).total() <= 1
