"""Replaces a region's cuts by their stored values."""

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from soda_compile.ir.graphs import add_input, find_node
from soda_compile.ir.roles import Slot
from soda_compile.ir.structure import Region
from soda_compile.passes.base import Pass, PassResult


@dataclass(frozen=True)
class InsertReuse(Pass):
    """Reads every cut of a region from its slot instead of computing it.

    Before, with cut ``%y``::

        %y   : [B, N, D] = linear(%attention, %w)
        %out : [B, N, D] = add(%h, mul(%gate, %y))

    After; the linear and all that only it needs are dead::

        %slot : [B, N, D] = placeholder
        %out  : [B, N, D] = add(%h, mul(%gate, %slot))

    Valid for any plan that computed the region earlier in the trajectory: the cuts separate all of the region's
    heavy work from the residual add, so nothing else of it is read. Never skipped: a region has its cuts.
    """

    index: int
    region: Region
    name: ClassVar[str] = "insert_reuse"

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrite ``graph`` in place; run dead-code elimination after it."""
        for number, cut in enumerate(self.region.cuts):
            node = find_node(graph, cut.node)
            slot = add_input(graph, f"slot_{cut.node}", node.meta["val"], Slot("cut", self.index, number))
            node.replace_all_uses_with(slot)
        return PassResult(changed=(self.region.name,))
