"""Lets the stream that blocks computed go on as it is, where what they added to it is kept."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from soda_compile.ir.graphs import find_node
from soda_compile.ir.structure import Region
from soda_compile.passes.base import Pass, PassResult

aten = torch.ops.aten


@dataclass(frozen=True)
class KeepStream(Pass):
    """Takes the stream after a stack of blocks instead of a sum that differs from it by rounding.

    Before, with cut ``%added``::

        %added : [B, N, D] = sub(%after, %without)
        %out   : [B, N, D] = add(%without, %added)
        return (%out)

    After; where nothing keeps it, the difference is dead::

        %added : [B, N, D] = sub(%after, %without)
        return (%after)

    Valid because both sums are the same number, and the one that the blocks gave is exact. Only for steps that compute
    the stack.
    """

    region: Region
    name: ClassVar[str] = "keep_stream"

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrite ``graph`` in place."""
        for cut in self.region.cuts:
            added = find_node(graph, cut.node)
            after, without = added.all_input_nodes
            for total in [user for user in added.users if user.target is aten.add.Tensor and user.args[0] is without]:
                total.replace_all_uses_with(after)
                graph.erase_node(total)
        return PassResult(changed=(self.region.kind,))
