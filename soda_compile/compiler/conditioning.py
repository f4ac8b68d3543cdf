"""Separation of conditioning: what depends on the timestep and pooled inputs alone is cut off the blocks.

Modulations (adaLN) are products of one row per sample with large weights, so their time goes to reading weights and
launching kernels. In a stage of their own they can be computed for all steps of a trajectory at once.
"""

from typing import Any

import torch

from soda_compile.compiler.dependence import Dependence
from soda_compile.compiler.separation import loses_cut, separate
from soda_compile.ir.structure import Structure


def separate_conditioning(structure: Structure) -> tuple[Structure, Structure] | None:
    """Split a denoiser into the conditioning and the remainder, which takes its values after the other inputs.

    Returns:
        The conditioning, with its values as outputs, and the remainder; None if there is no matrix product among the
        conditioning, or what can be reused is itself conditioning: then the sample itself was taken for it.
    """
    split = separate(structure, Dependence.TIMESTEP, _level_of)
    if split is None or any(loses_cut(call.block) for call in split[1].calls):
        return None
    return split


def _level_of(name: str, value: Any) -> Dependence:
    """Return the level of an input, whose axes tell samples from pooled values."""
    by_axes = (Dependence.TIMESTEP, Dependence.TIMESTEP, Dependence.POOLED)
    if isinstance(value, torch.Tensor) and value.ndim < len(by_axes):
        return by_axes[value.ndim]
    return Dependence.SAMPLE
