"""Mixes what a stale step gives with what the last anchors gave."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from soda_compile.ir.graphs import add_input, find_node
from soda_compile.ir.roles import Slot, StepConstant
from soda_compile.ir.structure import Region
from soda_compile.passes.base import Pass, PassResult
from soda_compile.passes.insert_forecast import add_history, weighted_sum


@dataclass(frozen=True)
class MixOutput(Pass):
    """Adds ``order + 1`` kept outputs to the denoiser's output, each with a coefficient, as the output has one.

    Before::

        return (%value)

    After, for first order::

        %slot, %slot_1 : [B, C, H, W], %coefficients : float32 [3] = placeholder
        %mixed : [B, C, H, W] = %coefficients[0] * %value + %coefficients[1] * %slot + %coefficients[2] * %slot_1
        return (%mixed)

    Stale values leave out a part of the output that often points where the last outputs differ, and change its norm,
    which the last normalisation of the denoiser would take back from any weight before it. Arithmetic is in float32 at
    least. Valid for any plan that computed everything ``order + 1`` times earlier in the trajectory. Never skipped.
    """

    index: int
    region: Region
    order: int
    name: ClassVar[str] = "mix_output"

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrite ``graph`` in place."""
        (cut,) = self.region.cuts
        node = find_node(graph, cut.node)
        value, readers = node.meta["val"], list(node.users)
        history = add_history(graph, node, Slot("cut", self.index, 0), self.order + 1)
        like = value.new_empty(self.order + 2, dtype=torch.float32)
        coefficients = add_input(graph, f"coefficients_{node.name}", like, StepConstant("coefficients", self.index))
        with graph.inserting_before(readers[0]):
            mixed = weighted_sum(graph, coefficients, [node, *history], value.dtype)
        for reader in readers:
            reader.replace_input_with(node, mixed)
        return PassResult(changed=(f"{self.region.kind} (order {self.order})",))
