"""Replaces a region's cuts by a mixture of stored and freshly computed tokens."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from soda_compile.analysis.token_axes import wanted_tokens
from soda_compile.ir.aten_operators import tensor_of
from soda_compile.ir.graphs import add_call, add_input, find_node, input_with_role
from soda_compile.ir.roles import Slot
from soda_compile.ir.structure import Region
from soda_compile.passes.base import Pass, PassResult
from soda_compile.passes.choose_tokens import ChooseTokens
from soda_compile.passes.selection import Place, Tokens, take
from soda_compile.passes.track_tokens import refresh
from soda_compile.plans.actions import Action
from soda_compile.plans.pruning import IndexUse, Pruning

aten = torch.ops.aten


@dataclass(frozen=True)
class PruneTokens(Pass):
    """Takes the wanted tokens of every cut, and the others from its slot.

    Before, with cut ``%y``::

        %y   : [B, N, D] = linear(%attention, %w)
        %out : [B, N, D] = add(%h, %y)

    After, for k of N tokens (see ``ChooseTokens`` for the index)::

        %slot  : [B, N, D], ... = placeholder
        %y     : [B, N, D] = linear(%attention, %w)
        %index : int64 [B, k] = ...
        %fresh : [B, k, D] = gather(%y, 1, %index)
        %mixed : [B, N, D] = scatter(%slot, 1, %index, %fresh)
        %copy  : [B, N, D] = copy_(%slot, %mixed)         # where a later step reads the mixture
        %out   : [B, N, D] = add(%h, %mixed)

    Valid for any plan that computed the region earlier in the trajectory. Nothing is saved yet: run ``SinkGathers``
    and dead-code elimination after it. Never skipped: regions without a token axis are refused when a plan is bound.

    Attributes:
        index: Index of the region in the block.
        region: The region.
        carries: For each cut the node whose tokens are scored.
        action: The rates.
        pruning: The score.
        store: Whether a later step reads the mixture.
        in_place: Whether it overwrites what is read.
        use: Where the index comes from, and whether it is kept for other regions.
        track: Whether a later step scores tokens against this one.
    """

    index: int
    region: Region
    carries: tuple[str, ...]
    action: Action
    pruning: Pruning
    store: bool = False
    in_place: bool = True
    use: IndexUse = "own"
    track: bool = False
    name: ClassVar[str] = "prune_tokens"

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrite ``graph`` in place."""
        changed = []
        for number, cut in enumerate(self.region.cuts):
            node = find_node(graph, cut.node)
            kept = wanted_tokens(self.region, number, self.action)
            with graph.inserting_before(node.next):
                if kept == cut.shape[1]:
                    self._compute_all(graph, node, number)
                else:
                    self._mix(graph, node, number, kept)
            changed.append(f"{kept} of {cut.shape[1]}")
        return PassResult(changed=(f"{self.region.name} ({', '.join(changed)} tokens)",))

    def _compute_all(self, graph: fx.Graph, node: fx.Node, number: int) -> None:
        """Take all tokens of a token group, by itself, so that the region's other groups need not be whole."""
        fresh = add_call(graph, aten.alias.default, node)
        fresh.meta["tokens"] = Tokens(self.region.cuts[number].shape[1], self.region.cuts[number].shape[0], None)
        node.replace_all_uses_with(fresh, delete_user_cb=lambda user: user is not fresh)
        if self.store:
            self._write(graph, node, number, fresh)

    def _mix(self, graph: fx.Graph, node: fx.Node, number: int, kept: int) -> None:
        samples, count, _ = self.region.cuts[number].shape
        carry = find_node(graph, self.carries[number])
        slot = add_input(graph, f"slot_{node.name}", node.meta["val"], Slot("cut", self.index, number))
        tokens = Tokens(count, samples, self._index(graph, carry, number, kept))
        fresh = take(graph, node, tokens, Place(axis=1))
        fresh.meta["tokens"] = tokens
        mixed = add_call(graph, aten.scatter.src, slot, 1, fresh.args[2], fresh)
        node.replace_all_uses_with(mixed, delete_user_cb=lambda user: user is not fresh)
        if self.store:
            self._write(graph, node, number, mixed)
        if self.track:
            refresh(graph, self.index, number, self.pruning, carry, tokens)

    def _write(self, graph: fx.Graph, node: fx.Node, number: int, value: fx.Node) -> None:
        role = Slot("cut", self.index, number, "read" if self.in_place else "write")
        name = f"slot_{node.name}" if self.in_place else f"target_{node.name}"
        slot = input_with_role(graph, role) or add_input(graph, name, node.meta["val"], role)
        add_call(graph, aten.copy_.default, slot, value)

    def _index(self, graph: fx.Graph, carry: fx.Node, number: int, kept: int) -> fx.Node:
        role = Slot("index", self.index, number)
        samples, count = tensor_of(carry).shape[:2]
        like = tensor_of(carry).new_empty((samples, kept), dtype=torch.int64)
        if self.use == "take":
            # Inside one graph the slot may be read before it is written, so the index is taken itself.
            made = (node for node in graph.nodes if node.meta.get("index_of") == (samples, count, kept))
            return next(made, None) or add_input(graph, f"index_{carry.name}", like, role)
        index = ChooseTokens(self.index, number, self.pruning, kept).build(graph, carry)
        if self.use == "keep":
            index.meta["index_of"] = (samples, count, kept)
            add_call(graph, aten.copy_.default, add_input(graph, f"index_{carry.name}", like, role), index)
        return index
