"""Stores a region's computed cuts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from soda_compile.passes.base import PassResult, add_input, find_node
from soda_compile.structure import Region, SlotInput

aten = torch.ops.aten


@dataclass(frozen=True)
class WriteSlots:
    """Copies every cut of a computed region to a slot, inside the graph.

    Before::

        %y   : [B, N, D] = linear(%attention, %w)
        %out : [B, N, D] = add(%h, %y)

    After::

        %slot : [B, N, D] = placeholder
        %y    : [B, N, D] = linear(%attention, %w)
        %copy : [B, N, D] = copy_(%slot, %y)
        %out  : [B, N, D] = add(%h, %y)

    Inductor fuses the copy into what consumes ``%y``, and the slot keeps its address. Valid because nothing else in
    the graph reads that slot. Only plans that read the value later use this pass.
    """

    index: int
    region: Region
    name: str = "write_slots"

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrites ``graph`` in place."""
        for number, cut in enumerate(self.region.cuts):
            node = find_node(graph, cut.node)
            slot = add_input(graph, f"slot_{cut.node}", node.meta["val"], SlotInput(self.index, number, age=None))
            with graph.inserting_after(node):
                graph.call_function(aten.copy_.default, (slot, node)).meta = {"val": slot.meta["val"]}
        return PassResult(changed=(self.region.name,))
