"""Denoisers written by hand: their blocks and regions are found, and plans are carried out exactly."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from eager_reference import EagerReference
from families import Region
from models.harness import Board, compile_once, difference, generate
from plain_models import (
    Attributes,
    Breaks,
    DitBlock,
    InPlaceBlock,
    InSequential,
    Listed,
    ParentAdds,
    SerialBlock,
    TimmBlock,
    TwoLists,
    inputs,
)
from random_plans import random_plan
from torch import nn

import soda_compile

STEPS = 5


def in_list(prefix: str, count: int, attention: str = "attn", mlp: str = "mlp") -> dict[str, Region]:
    return {
        f"{prefix}{index}.{name}": Region((f"{prefix}{index}.{name}.{last}",))
        for index in range(count)
        for name, last in ((attention, "proj"), (mlp, "fc2"))
    }


def named(*blocks: str) -> dict[str, Region]:
    return {
        f"{block}.{name}": Region((f"{block}.{name}.{last}",))
        for block in blocks
        for name, last in (("attn", "proj"), ("mlp", "fc2"))
    }


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Region], int]] = {
    # name: model, regions, distinct block graphs
    "facebookresearch DiT": (lambda: Listed(DitBlock), in_list("blocks.", 3), 1),
    "timm": (lambda: Listed(TimmBlock), in_list("blocks.", 3), 1),
    "in place": (lambda: Listed(InPlaceBlock), in_list("blocks.", 3), 1),
    "fused gate and add": (lambda: Listed(SerialBlock), in_list("blocks.", 3), 1),
    "attributes": (Attributes, named("first", "second", "third"), 1),
    "Sequential": (InSequential, in_list("net.", 3), 1),
    "adds in the parent": (ParentAdds, {f"layers.{i}": Region((f"layers.{i}.fc2",)) for i in range(3)}, 1),
    "two lists": (TwoLists, in_list("spatial.", 2) | in_list("temporal.", 2, "mixing", "feeding"), 2),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


Traced = tuple[str, nn.Module, Board, Callable[..., Any]]


@pytest.fixture(scope="module", params=MODELS)
def traced(request: pytest.FixtureRequest) -> Traced:
    """The name of a model, the model, its graph on a board, and the model compiled with this board."""
    model = build(request.param)
    board, compiled, reason = compile_once(model, inputs())
    assert reason == ""
    return request.param, model, board, compiled


def test_regions(traced: Traced) -> None:
    name, structure = traced[0], traced[2].structure
    _, expected, graphs = MODELS[name]
    assert sorted(structure.region_names) == sorted(expected)
    blocks = [call.block for call in structure.calls if not call.name.startswith("(")]
    assert len({block.key for block in blocks}) == graphs, "equal blocks share one graph"


def test_plans_are_carried_out(traced: Traced) -> None:
    name, model, board, compiled = traced
    regions = MODELS[name][1]
    calls = [inputs(step) for step in range(STEPS)]
    names = board.structure.region_names
    board.install(soda_compile.compute_all_plan(names, STEPS, fingerprint=board.structure.fingerprint))
    eager = generate(model, calls)
    assert difference(generate(compiled, calls), eager) <= 1e-6
    plan = random_plan(3, names, STEPS, fingerprint=board.structure.fingerprint)
    board.install(plan)
    reference = EagerReference(model, regions, plan).run(calls)
    assert difference(generate(compiled, calls), reference) <= 1e-5
    assert difference(reference, eager) > 1e-3, "the plan must show"


def test_a_root_sequential() -> None:
    model = nn.Sequential(nn.Linear(4, 16), TimmBlock(), TimmBlock(), nn.Linear(16, 4))
    structure = soda_compile.inspect(model, torch.randn(2, 9, 4))
    assert structure.region_names == ("1.attn", "1.mlp", "2.attn", "2.mlp")
    assert [call.name for call in structure.calls] == ["(head)", "1", "2", "(tail)"]


def test_the_graph_behind_a_break_is_planned(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = Breaks(TimmBlock).eval()
    with caplog.at_level(logging.WARNING):
        structure = soda_compile.inspect(model, **inputs())
    assert structure.region_names == tuple(in_list("blocks.", 3))
    assert "Breaks is captured in several graphs" in caplog.text
    assert "data-dependent" in caplog.text.lower()


class BreaksInEachBlock(Breaks):
    def body(self, h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            h = block(h)
            if h.sum() > 1e6:
                h = h * 2
        return h


def test_a_model_that_breaks_in_each_block_is_refused_with_the_reason() -> None:
    with pytest.raises(
        soda_compile.CaptureError, match=r"(?s)no single other graph holds all its regions.*[Dd]ata-dependent"
    ):
        soda_compile.inspect(BreaksInEachBlock(TimmBlock).eval(), **inputs())
