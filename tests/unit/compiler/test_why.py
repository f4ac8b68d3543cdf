"""Reasons for what pruning comes to in each region."""

import pytest
import torch
from planner_tables import make_sensitivity
from torch import nn
from toys import Gated, seeded

import soda_compile
from soda_compile.compiler.why import why
from soda_compile.planner import Unified, explain, plan
from soda_compile.plans.pruning import Pruning


class Stack(nn.Module):
    """Two equal residual branches over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(seeded(Gated()) for _ in range(2))

    def forward(self, h: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            h = block(h, gate)
        return h


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def test_a_region_with_tokens_says_where_the_choice_stops():
    notes = why(soda_compile.inspect(Stack(), torch.randn(2, 3, 4), torch.randn(2, 1, 4)))
    assert {note.subject for note in notes} == {"blocks.0.linear"}, "equal blocks are told of once"
    assert notes[0].reason.startswith("can be pruned; at rate 0.5 it ")


def test_a_region_without_tokens_says_so():
    (note,) = why(soda_compile.inspect(Gated(), torch.randn(2, 4), torch.randn(2, 4)))
    assert "cannot be pruned: its output linear [2, 4] has no token axis" in str(note)


def test_reasons_are_shown_beside_the_plan():
    sensitivity = make_sensitivity(0, steps=8, width=7, scores=["drift"])
    made = plan(sensitivity, speedup=1.5, strategy=Unified(pruning=Pruning("drift")))
    structure = soda_compile.inspect(Stack(), torch.randn(2, 3, 4), torch.randn(2, 1, 4))
    text = explain(made, sensitivity, reasons=why(structure))
    assert "blocks.0.linear: can be pruned" in text
    assert text.startswith(explain(made, sensitivity).splitlines()[0])
