"""Scores of tokens, and the choice of those to compute."""

import operator
from dataclasses import dataclass

import torch
from torch import fx

from soda_compile.ir.aten_operators import tensor_of
from soda_compile.ir.graphs import add_call, add_input, input_with_role
from soda_compile.ir.roles import Slot, StepConstant
from soda_compile.plans.pruning import Pruning

aten = torch.ops.aten


@dataclass(frozen=True)
class ChooseTokens:
    """Builds the index of the ``kept`` tokens with the highest score.

    Drift, with carry ``%h`` and what it was when each token was last computed::

        %then  : [B, N, D] = placeholder
        %score : float32 [B, N] = sum((%h - %then) ** 2, -1)
        %index : int64 [B, k]   = topk(%score, k)

    The order of squared norms is that of norms. Staleness adds ``weight * (step - step of the token)`` to the
    score divided by its mean; groups average the score over the parts of a batch first.

    Attributes:
        region: Index of the region in the block.
        cut: Index of the cut in the region.
        pruning: The score and its options.
        kept: k.
    """

    region: int
    cut: int
    pruning: Pruning
    kept: int

    def build(self, graph: fx.Graph, carry: fx.Node) -> fx.Node:
        """Add the nodes at the graph's insertion point; give int64 [B, k]."""
        score = self._score(graph, carry)
        if self.pruning.staleness:
            score = self._with_staleness(graph, score)
        samples, tokens = tensor_of(score).shape
        groups = self.pruning.groups
        if groups > 1:
            parts = add_call(graph, aten.reshape.default, score, [groups, samples // groups, tokens])
            score = add_call(graph, aten.mean.dim, parts, [0])
        best = add_call(graph, aten.topk.default, score, self.kept)
        index = add_call(graph, operator.getitem, best, 1)
        return index if groups == 1 else add_call(graph, aten.repeat.default, index, [groups, 1])

    def _score(self, graph: fx.Graph, carry: fx.Node) -> fx.Node:
        value = tensor_of(carry)
        samples, tokens = value.shape[:2]
        if self.pruning.score == "random":
            like = value.new_empty(tokens, dtype=torch.float32)
            drawn = add_input(graph, f"random_{carry.name}", like, StepConstant("random", self.region, self.cut))
            return add_call(graph, aten.expand.default, drawn, [samples, tokens])
        features = _float(graph, carry)
        if self.pruning.score == "feature_mean":
            return add_call(graph, aten.mean.dim, features, [-1])
        then = add_input(graph, f"then_{carry.name}", value, Slot("input", self.region, self.cut))
        change = add_call(graph, aten.sub.Tensor, features, _float(graph, then))
        return add_call(graph, aten.sum.dim_IntList, add_call(graph, aten.mul.Tensor, change, change), [-1])

    def _with_staleness(self, graph: fx.Graph, score: fx.Node) -> fx.Node:
        value = tensor_of(score)
        now = step_input(graph, value)
        then = add_input(graph, f"step_{score.name}", value.new_empty(value.shape), Slot("step", self.region, self.cut))
        age = add_call(graph, aten.sub.Tensor, now, then)
        mean = add_call(graph, aten.mean.dim, add_call(graph, aten.abs.default, score), [-1], True)
        share = add_call(graph, aten.div.Tensor, score, add_call(graph, aten.clamp.default, mean, 1e-30))
        return add_call(graph, aten.add.Tensor, share, add_call(graph, aten.mul.Tensor, age, self.pruning.staleness))


def step_input(graph: fx.Graph, like: torch.Tensor) -> fx.Node:
    """Return the graph's one input that takes the number of the step."""
    role = StepConstant("number")
    return input_with_role(graph, role) or add_input(graph, "step", like.new_empty((), dtype=torch.float32), role)


def _float(graph: fx.Graph, node: fx.Node) -> fx.Node:
    if tensor_of(node).dtype == torch.float32:
        return node
    return add_call(graph, aten._to_copy.default, node, dtype=torch.float32)
