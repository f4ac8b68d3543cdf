"""Makes a block graph return the values that sensitivity is measured on as well."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import fx

from soda_compile.analysis.cut_to_branch import cut_to_branch
from soda_compile.analysis.token_axes import carries_of
from soda_compile.ir.graphs import add_call, find_node, output_of, results_of
from soda_compile.ir.structure import Region
from soda_compile.passes.base import Pass, PassResult

aten = torch.ops.aten


@dataclass(frozen=True)
class Observe(Pass):
    """Returns the cuts of every region, the other values between cut and branch, and the size of its carries.

    With ``carries`` also the carry of each cut, where the region can be pruned. ``sample_axes`` names the carries whose
    samples are on another axis than the first: their size is that of each row of that axis.

    Before::

        %y   : [B, N, D] = linear(%attention, %w)
        %out : [B, N, D] = add(%h, mul(%gate, %y))
        return (%out,)

    After::

        %size : float32 [B] = sum(%h * %h, (1, 2))
        return (%out, %y, %gate, %size)

    Valid for every graph: it only adds outputs. The result's ``changed`` names them in order, without repetition:
    cuts, other values and carries by their node names, sizes as ``|carry|``.
    """

    regions: tuple[Region, ...]
    carries: bool = False
    sample_axes: Mapping[str, int] = field(default_factory=dict)
    name: ClassVar[str] = "observe"

    def apply(self, graph: fx.Graph) -> PassResult:
        """Add the outputs to ``graph``."""
        wanted: dict[str, fx.Node] = {}
        for region in self.regions:
            for name in (*(cut.node for cut in region.cuts), *cut_to_branch(graph, region).others):
                wanted[name] = find_node(graph, name)
            if self.carries:
                wanted |= {node.name: node for node in carries_of(graph, region) or ()}
            for carry in region.carries:
                if f"|{carry}|" not in wanted:
                    wanted[f"|{carry}|"] = _squared_size(graph, find_node(graph, carry), self.sample_axes.get(carry, 0))
        output_of(graph).args = ((*results_of(graph), *wanted.values()),)
        return PassResult(changed=tuple(wanted))


def _squared_size(graph: fx.Graph, carry: fx.Node, sample_axis: int) -> fx.Node:
    """Add the sum of squares of each row of an axis, float32."""
    axes = [axis for axis in range(carry.meta["val"].ndim) if axis != sample_axis]
    with graph.inserting_before(output_of(graph)):
        exact = add_call(graph, aten._to_copy.default, carry, dtype=torch.float32)
        square = add_call(graph, aten.mul.Tensor, exact, exact)
        return add_call(graph, aten.sum.dim_IntList, square, axes)
