"""Replaces a region's cuts by an extrapolation of their last computed values."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from soda_compile.ir.graphs import add_call, add_input, find_node
from soda_compile.ir.meta import meta_of
from soda_compile.ir.roles import Slot, StepConstant
from soda_compile.ir.structure import Region
from soda_compile.passes.base import Pass, PassResult

aten = torch.ops.aten


@dataclass(frozen=True)
class InsertForecast(Pass):
    """Extrapolates every cut of a region from its last ``order + 1`` computed values.

    Before, with cut ``%y``::

        %y   : [B, N, D] = linear(%attention, %w)
        %out : [B, N, D] = add(%h, %y)

    After, for first order; the linear is dead::

        %slot, %slot_1 : [B, N, D], %coefficients : float32 [2] = placeholder
        %first    : [B, N, D] = mul(%slot, select(%coefficients, 0, 0))
        %second   : [B, N, D] = mul(%slot_1, select(%coefficients, 0, 1))
        %forecast : [B, N, D] = add(%first, %second)
        %out      : [B, N, D] = add(%h, %forecast)

    The coefficients are those of the polynomial through the stored points, evaluated at the present step (finite
    differences in Lagrange form, exact for uneven steps; TaylorSeer's forecast at even steps, arXiv 2503.06923).
    They depend on the step alone, so one graph serves all steps. Arithmetic is in float32 at least. Valid for any
    plan that computed the region ``order + 1`` times earlier in the trajectory. Never skipped.
    """

    index: int
    region: Region
    order: int
    name: ClassVar[str] = "insert_forecast"

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrite ``graph`` in place; run dead-code elimination after it."""
        nodes = [find_node(graph, cut.node) for cut in self.region.cuts]
        like = nodes[0].meta["val"]
        coefficients = add_input(
            graph,
            f"coefficients_{nodes[0].name}",
            like.new_empty(self.order + 1, dtype=torch.float32),
            StepConstant("coefficients", self.index),
        )
        for number, node in enumerate(nodes):
            history = add_history(graph, node, Slot("cut", self.index, number), self.order + 1)
            with graph.inserting_before(node):
                forecast = weighted_sum(graph, coefficients, history, node.meta["val"].dtype)
            forecast.meta["paths"] = meta_of(node).get("paths", ())
            node.replace_all_uses_with(forecast)
        return PassResult(changed=(f"{self.region.name} (order {self.order})",))


def add_history(graph: fx.Graph, node: fx.Node, newest: Slot, count: int) -> list[fx.Node]:
    """Add inputs for the last values of a cut that were kept, newest first."""
    slots = [replace(newest, age=age) for age in range(count)]
    return [add_input(graph, f"slot_{node.name}_{slot.age}", node.meta["val"], slot) for slot in slots]


def weighted_sum(graph: fx.Graph, coefficients: fx.Node, values: list[fx.Node], dtype: torch.dtype) -> fx.Node:
    """Add ``sum(coefficients[k] * values[k])``, rounded once when the values are narrower than float32."""
    terms = []
    for age, value in enumerate(values):
        factor = add_call(graph, aten.select.int, coefficients, 0, age)
        point = add_call(graph, aten._to_copy.default, value, dtype=torch.float32) if _is_narrow(dtype) else value
        terms.append(add_call(graph, aten.mul.Tensor, point, factor))
    total = terms[0]
    for term in terms[1:]:
        total = add_call(graph, aten.add.Tensor, total, term)
    return add_call(graph, aten._to_copy.default, total, dtype=dtype) if _is_narrow(dtype) else total


def _is_narrow(dtype: torch.dtype) -> bool:
    return torch.finfo(dtype).bits < 32
