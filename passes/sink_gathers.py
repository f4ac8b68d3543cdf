"""Moves the choice of tokens from the end of a branch to its beginning."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from soda_compile.analysis.token_axes import stream_into
from soda_compile.ir.ancestry import ancestors_of, descendants_of
from soda_compile.ir.aten_operators import flops, is_heavy, packet
from soda_compile.ir.graphs import add_call, find_node
from soda_compile.ir.structure import Note, Region
from soda_compile.passes.base import Pass, PassResult
from soda_compile.passes.selection import Place, Tokens, take
from soda_compile.passes.sinking import Unsinkable
from soda_compile.passes.sinking_rules import rule_for

aten = torch.ops.aten


@dataclass(frozen=True)
class SinkGathers(Pass):
    """Computes a pruned branch for its wanted tokens alone.

    Before, with index ``%i : [B, k]``; every token is computed, then k are taken::

        %x : [B, N, D] = layer_norm(%h)
        %y : [B, N, D] = linear(%x, %w)
        %t : [B, k, D] = gather(%y, 1, %i)

    After::

        %g : [B, k, D] = gather(%h, 1, %i)
        %x : [B, k, D] = layer_norm(%g)
        %t : [B, k, D] = linear(%x, %w)

    Valid because each rule of ``sinking_rules`` commutes with taking tokens. The gather stops at the region's
    carry, at values that do not depend on it (rotary tables, masks), at light work that keys and values need for
    all tokens anyway, and where no rule applies: it is correct anywhere, only less is saved. ``skipped`` says where
    it stopped for want of a rule.
    """

    region: Region
    name: ClassVar[str] = "sink_gathers"
    optional: ClassVar[bool] = True

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrite ``graph`` in place; run dead-code elimination after it."""
        ends = zip(self.region.carries, self.region.branches, strict=True)
        carries = [stream_into(find_node(graph, operand), find_node(graph, branch)) for operand, branch in ends]
        before = _needed_flops(graph)
        stops: dict[str, None] = {}
        for node in [node for node in graph.nodes if "tokens" in node.meta]:
            tokens = node.meta.pop("tokens")
            sinker = _Sinker(graph, node, tokens, carries)
            node.replace_all_uses_with(sinker.want(node.args[0], Place(axis=1)))
            graph.erase_node(node)
            stops |= dict.fromkeys(sinker.stops)
        kept = self.region.flops - before + _needed_flops(graph)
        share = kept / self.region.flops if self.region.flops else 1.0
        changed = f"{self.region.name}: keeps {share:.0%} of its work"
        return PassResult((changed,), tuple(Note(self.region.name, stop) for stop in stops))


class _Sinker:
    """Rewrites one branch backwards from one gather."""

    def __init__(self, graph: fx.Graph, at: fx.Node, tokens: Tokens, carries: Sequence[fx.Node]) -> None:
        self.graph = graph
        self.at = at
        self.tokens = tokens
        self.stops: list[str] = []
        self._dependent = descendants_of(*carries)
        self._carries = ancestors_of(*carries)
        self._whole: set[fx.Node] = set()
        self._made: dict[tuple[fx.Node, Hashable], fx.Node] = {}

    def want(self, node: fx.Node, place: Place) -> fx.Node:
        """Return the wanted tokens of a node."""
        key = (node, place.key)
        if key not in self._made:
            self._made[key] = self._make(node, place)
        return self._made[key]

    def _make(self, node: fx.Node, place: Place) -> fx.Node:
        if node in self._carries or node not in self._dependent or self._is_at_hand(node):
            return self._take(node, place)
        try:
            return rule_for(node)(self, node, place)
        except Unsinkable as reason:
            self.stops.append(f"{node.name}: {reason}")
            return self._take(node, place)

    def _take(self, node: fx.Node, place: Place) -> fx.Node:
        with self.graph.inserting_before(self.at):
            return take(self.graph, node, self.tokens, place)

    def _is_at_hand(self, node: fx.Node) -> bool:
        """Return whether all tokens of the node are computed anyway, and nothing heavy before it could be saved.

        Behind a fused projection of queries, keys and values the gather goes on: ``narrow_linear`` then computes
        queries for the wanted tokens only.
        """
        if node not in self._whole:
            return False
        return not any(is_heavy(source) for source in ancestors_of(node) & self._dependent - self._carries)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call before the gather that is being sunk."""
        with self.graph.inserting_before(self.at):
            return add_call(self.graph, target, *args, **kwargs)

    def keep_whole(self, nodes: Sequence[fx.Node]) -> None:
        """Mark what these nodes need as computed for all tokens."""
        self._whole |= ancestors_of(*nodes)


def _needed_flops(graph: fx.Graph) -> int:
    """Return the work of the nodes that outputs and slot writes need."""
    roots = [node for node in graph.nodes if node.op == "output" or packet(node) is aten.copy_]
    return sum(flops(node) for node in ancestors_of(*roots) if node.op == "call_function")


__all__ = ["SinkGathers"]
