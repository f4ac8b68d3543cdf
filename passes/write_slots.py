"""Stores a region's computed cuts."""

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from soda_compile.ir.graphs import add_input, add_output, find_node, output_of
from soda_compile.ir.roles import Slot
from soda_compile.ir.structure import Region
from soda_compile.passes.base import Pass, PassResult

aten = torch.ops.aten


@dataclass(frozen=True)
class WriteSlots(Pass):
    """Hands every cut of a computed region over as the new content of its slot.

    Before::

        %y   : [B, N, D] = linear(%attention, %w)
        %out : [B, N, D] = add(%h, %y)
        return (%out)

    After; the runtime puts the second result where the slot was::

        %y   : [B, N, D] = linear(%attention, %w)
        %out : [B, N, D] = add(%h, %y)
        return (%out, %y)

    Nothing is copied: the slot is the memory that the module wrote. Valid because nothing else in the graph reads
    that slot, and nothing later writes to the result. A cut that is part of a larger tensor would keep all of that
    alive, and one that the graph returns anyway belongs to whoever takes it: these are copied inside the graph ::

        %slot : [B, N, D] = placeholder
        %y    : [B, N, D] = getitem(%both, 0)
        %copy : [B, N, D] = copy_(%slot, %y)

    which Inductor fuses into what consumes ``%y``. Only plans that read the value later use this pass.
    """

    index: int
    region: Region
    name: ClassVar[str] = "write_slots"

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrite ``graph`` in place."""
        for number, cut in enumerate(self.region.cuts):
            node = find_node(graph, cut.node)
            role = Slot("cut", self.index, number, "write")
            if _is_part(node) or node in output_of(graph).all_input_nodes:
                slot = add_input(graph, f"slot_{cut.node}", node.meta["val"], role)
                with graph.inserting_after(slot if node.op == "placeholder" else node):
                    graph.call_function(aten.copy_.default, (slot, node)).meta = {"val": slot.meta["val"]}
            else:
                add_output(graph, node, role)
        return PassResult(changed=(self.region.name,))


def _is_part(node: fx.Node) -> bool:
    """Return whether the value may lie inside another tensor's memory without being all of it."""
    size = node.meta["val"].numel()
    while node.op == "call_function" and (node.target is operator.getitem or _is_view(node)):
        source = node.all_input_nodes[0]
        value = source.meta["val"]
        if not isinstance(value, torch.Tensor):  # one result of an operator that gives several
            return _is_view(source)
        if value.numel() != size:
            return True
        node = source
    return node.op == "placeholder"


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)
