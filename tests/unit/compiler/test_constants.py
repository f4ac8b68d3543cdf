"""What a generation does not change, told apart by the graph alone."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES, structure_of
from side_models import Cross, SideDenoiser, side_denoiser, side_inputs, step_inputs
from thorough import gated
from torch import Tensor, nn

from soda_compile.compiler import constant_stage, constants
from soda_compile.compiler.conditioning import separate_conditioning
from soda_compile.compiler.constant_stage import ConstantStage, take_constants
from soda_compile.compiler.constants import separate_constants
from soda_compile.compiler.lowering import Lowering
from soda_compile.ir.structure import Structure
from soda_compile.measure.inspection import inspect

STEPS = 6


def side_structure(model: nn.Module | None = None, **more: Tensor) -> Structure:
    return inspect(model or side_denoiser(), **{**step_inputs(0, STEPS), **side_inputs(), **more})


def taken(structure: Structure, timestep: str | None = None) -> dict[str, list[str]]:
    """For each call of the stage the inputs that its results depend on, weights left out."""
    remainder, stage = take_constants(structure, timestep, Lowering(target="eager"))
    if stage is None:
        assert remainder is structure
        return {}
    split = separate_constants(structure, timestep)
    assert split is not None
    names = [call.name for call in split[0].calls]
    return {name: inputs_of(structure, stage, number) for number, name in enumerate(names)}


def inputs_of(structure: Structure, stage: ConstantStage, number: int) -> list[str]:
    return sorted(structure.paths[at] for at in stage.reads[number] if not structure.parameters[at])


def test_each_call_knows_what_its_values_depend_on():
    assert taken(side_structure()) == {
        "(head) (constant)": ["mask", "text"],
        "blocks.0 (constant)": ["side", "text"],
        "blocks.1 (constant)": ["side", "text"],
    }


def test_equal_blocks_share_their_code():
    _, stage = take_constants(side_structure(), None, Lowering(target="eager"))
    assert stage is not None
    _, first, second = stage.program.steps[0]
    assert first.function is second.function


def test_the_plan_still_fits():
    structure = side_structure()
    split = separate_constants(structure)
    assert split is not None
    once, remainder = split
    assert (remainder.region_names, remainder.fingerprint) == (structure.region_names, structure.fingerprint)
    assert once.flops + remainder.flops == structure.flops


class TimesOfTokens(SideDenoiser):
    """A timestep of each token, as of models that animate an image; the text does not depend on it."""

    def forward(self, x: Tensor, t: Tensor, text: Tensor, mask: Tensor, side: Tensor) -> Tensor:
        h = self.embed(x) + self.time(t[:, :, None])
        text = self.caption(text)
        for block in self.blocks:
            h = block(h, text, mask[:, None], side)
        return self.head(h)


def test_a_timestep_of_two_axes():
    structure = side_structure(side_denoiser(TimesOfTokens), t=torch.ones(2, 9))
    assert taken(structure, "t")["(head) (constant)"] == ["mask", "text"]
    unknown = taken(structure)
    assert unknown["(head) (constant)"] == ["mask", "t", "text"], "what changes is computed again"
    assert unknown["blocks.0 (constant)"] == ["side", "text"], "what does not change is not"


class Channels(SideDenoiser):
    """Takes the latents with a mask and an image, as inpainting does, and returns the latents."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(11, 16)


def test_latents_with_more_channels_than_the_output():
    structure = side_structure(side_denoiser(Channels), x=torch.randn(2, 9, 11))
    assert taken(structure)["(head) (constant)"] == ["mask", "text"]


class Folded(Channels):
    """Returns another shape than it takes."""

    def forward(self, x: Tensor, t: Tensor, text: Tensor, mask: Tensor, side: Tensor) -> Tensor:
        return super().forward(x, t, text, mask, side).flatten(1)


def test_without_latents_everything_is_computed_at_each_step():
    assert taken(side_structure(side_denoiser(Folded), x=torch.randn(2, 9, 11))) == {}


class Positions(Cross):
    """Its weights alone give a bias of the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.bias = nn.Parameter(torch.randn(9, 4)), nn.Linear(4, 5)

    def forward(self, h: Tensor, text: Tensor, mask: Tensor, side: Tensor) -> Tensor:
        return super().forward(h, text, torch.where(mask, self.bias(self.position), -1e3), side)


class Positioned(SideDenoiser):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Positions() for _ in range(2))


def test_products_of_weights_alone_are_constants():
    structure = side_structure(side_denoiser(Positioned))
    plain = separate_constants(side_structure())
    split = separate_constants(structure)
    assert split is not None
    assert plain is not None
    assert split[0].flops == plain[0].flops + 2 * 2 * 9 * 4 * 5


class Refined(SideDenoiser):
    """Blocks of the text alone come first, as in Lumina: regions of the plan, however constant."""

    def __init__(self) -> None:
        super().__init__()
        self.refiner = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(2)
        )

    def forward(self, x: Tensor, t: Tensor, text: Tensor, mask: Tensor, side: Tensor) -> Tensor:
        h = self.embed(x) + self.time(t[:, None])[:, None]
        text = self.caption(text)
        for block in self.refiner:
            text = text + block(text)
        for block in self.blocks:
            h = block(h, text, mask[:, None], side)
        return self.head(h)


def test_blocks_with_regions_stay_with_the_plan():
    structure = side_structure(side_denoiser(Refined))
    assert any("refiner" in name for name in structure.region_names)
    split = separate_constants(structure)
    assert split is not None
    assert split[1].region_names == structure.region_names
    assert not any("refiner" in call.name for call in split[0].calls)
    assert taken(structure)["blocks.0 (constant)"] == ["side"], "keys and values read what the plan decides on"


class Noisy(SideDenoiser):
    """Draws from the text at each step."""

    def forward(self, x: Tensor, t: Tensor, text: Tensor, mask: Tensor, side: Tensor) -> Tensor:
        return super().forward(x, t, text + torch.randn_like(text), mask, side)


def test_what_is_drawn_anew_is_no_constant():
    assert taken(side_structure(side_denoiser(Noisy)))["blocks.0 (constant)"] == ["side"]


def test_too_little_work_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "LEAST", 0.9)
    assert taken(side_structure()) == {}


def test_more_memory_than_the_weights_is_not_kept(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(constant_stage, "MOST", 1e-3)
    with caplog.at_level(logging.WARNING):
        assert taken(side_structure()) == {}
    assert "is computed at each step: kept, it takes" in caplog.text


class TextAlone(Cross):
    def forward(self, h: Tensor, text: Tensor, mask: Tensor, side: Tensor) -> Tensor:
        return super().forward(h, text, mask, h[..., :3])


class Small(SideDenoiser):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TextAlone() for _ in range(2))


def test_small_models_may_keep_as_much_as_one_copy_of_all_cuts():
    more = {"x": torch.randn(32, 9, 4), "t": torch.ones(32), "text": torch.randn(32, 5, 7)}
    structure = side_structure(side_denoiser(Small), **more, mask=torch.ones(32, 5, dtype=torch.bool))
    _, stage = take_constants(structure, None, Lowering(target="eager"))
    assert stage is not None
    assert stage.memory_bytes > structure.weight_bytes


@pytest.mark.parametrize("name", gated("wan", others=FAMILIES))
def test_families(name: str):
    """Keys and values of the text where a cross-attention reads it; joint attentions at most embeddings."""
    found = taken(inspect(FAMILIES[name].build(), **FAMILIES[name].inputs(0, STEPS)), "timestep")
    read: set[Any] = {path for paths in found.values() for path in paths}
    wanted: dict[str, set[str]] = {
        "pixart": {"encoder_hidden_states", "encoder_attention_mask"},
        "sd3": {"encoder_hidden_states", "pooled_projections"},
        "wan": {"encoder_hidden_states"},
        "latte": {"encoder_hidden_states"},
    }
    assert read == wanted.get(name, set())


@pytest.mark.parametrize("separate", [separate_constants, separate_conditioning])
@pytest.mark.parametrize("name", FAMILIES)
def test_regions_find_their_nodes_in_what_is_left(name: str, separate: Callable[..., Any]):
    """Pruning looks for carries and branches too, not for cuts alone."""
    split = separate(structure_of(name))
    if split is None:
        return
    for call in split[1].calls:
        nodes = {node.name for node in call.block.module.graph.nodes}
        for region in call.block.regions:
            assert {*(cut.node for cut in region.cuts), *region.branches, *region.carries} <= nodes
