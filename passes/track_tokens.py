"""Keeps the values that tokens were scored by when they were last computed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import fx

from soda_compile.ir.aten_operators import tensor_of
from soda_compile.ir.graphs import add_call, add_input, find_node, input_with_role, output_of
from soda_compile.ir.roles import Slot
from soda_compile.ir.structure import Region
from soda_compile.passes.base import Pass, PassResult
from soda_compile.passes.choose_tokens import step_input
from soda_compile.passes.selection import Place, Tokens, take
from soda_compile.plans.pruning import Pruning

aten = torch.ops.aten


@dataclass(frozen=True)
class TrackTokens(Pass):
    """Stores, where a region computes, the input and the step that later prunes score its tokens against.

    Before::

        %out : [B, N, D] = add(%h, %y)

    After, for the score ``drift`` with staleness::

        %then : [B, N, D], %last : float32 [B, N], %step : float32 [] = placeholder
        %copy   : [B, N, D] = copy_(%then, %h)
        %copy_1 : float32 [B, N] = copy_(%last, %step)
        %out    : [B, N, D] = add(%h, %y)

    Valid because nothing else in the graph reads these slots. Adds nothing for a score that looks at the present
    alone.
    """

    index: int
    region: Region
    carries: tuple[str, ...]
    pruning: Pruning
    name: ClassVar[str] = "track_tokens"

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrite ``graph`` in place."""
        with graph.inserting_before(output_of(graph)):
            for number, carry in enumerate(self.carries):
                refresh(graph, self.index, number, self.pruning, find_node(graph, carry), None)
        return PassResult(changed=(self.region.name,) if any(tracked(self.pruning)) else ())


def tracked(pruning: Pruning) -> Iterator[Literal["input", "step"]]:
    """Yield the kinds of slots that keep what a score asks of each token since it was last computed."""
    if pruning.score == "drift":
        yield "input"
    if pruning.staleness:
        yield "step"


def refresh(graph: fx.Graph, region: int, cut: int, pruning: Pruning, carry: fx.Node, tokens: Tokens | None) -> None:
    """Write what is tracked for the tokens that are computed now; None for all of them."""
    for what in tracked(pruning):
        role = Slot(what, region, cut)
        value = tensor_of(carry)
        if what == "input":
            fresh, like = carry, value
        else:
            like = value.new_empty(value.shape[:2], dtype=torch.float32)
            fresh = add_call(graph, aten.expand.default, step_input(graph, like), list(like.shape))
        # The score may read this slot already.
        slot = input_with_role(graph, role) or add_input(graph, f"{what}_{carry.name}", like, role)
        if tokens is not None:
            part = take(graph, fresh, tokens, Place(axis=1))
            fresh = add_call(graph, aten.scatter.src, slot, 1, part.args[2], part)
        add_call(graph, aten.copy_.default, slot, fresh)
