"""A captured denoiser: the one IR of the compiler."""

from dataclasses import dataclass

import torch
from torch import fx

from soda_compile.torch_internals.symbolic_export import SymbolicSizes


@dataclass(frozen=True, eq=False)
class Captured:
    """A denoiser as one functional graph.

    Attributes:
        graph: ATen operators; every node has ``val`` (fake tensor), ``paths`` and ``classes`` (of modules) in its meta.
        inputs: Names of the placeholders that the caller fills, in call order.
        paths: For each input, its path in the model or its argument name.
        parameters: For each input, whether it belongs to the model.
        constants: Tensors that the model made while it ran, by placeholder name.
        outputs: Names of the returned values, in order (None for a None).
        sizes: Sizes that differ between calls; None where all are fixed. Arguments of nodes hold them as they are.
    """

    graph: fx.Graph
    inputs: tuple[str, ...]
    paths: tuple[str, ...]
    parameters: tuple[bool, ...]
    constants: dict[str, torch.Tensor]
    outputs: tuple[str | None, ...]
    sizes: SymbolicSizes | None = None
