"""Packages for any batch, resolution and length of text do at each size what hooks in eager mode do."""

from pathlib import Path
from typing import Any

import package_tools as toy
import pytest
import torch
from eager_reference import EagerReference, tensors
from families import FAMILIES
from package_tools import Calls
from random_plans import random_plan
from sized_models import SIZED, Size
from thorough import gated
from torch import Tensor, nn
from torch.export import Dim

import soda_compile
from soda_compile.plans.plan import Plan

STEPS = 4
FIRST = Size(batch=2, rows=8, text=6)
OTHER = Size(batch=5, rows=12, text=9)
BATCH, TEXT, HALF = Dim("batch", min=2, max=8), Dim("text", min=4, max=24), Dim("half", min=2, max=12)
WITH_TEXT = {"encoder_hidden_states": {0: BATCH, 1: TEXT}}
POOLED = {"timestep": {0: BATCH}, "pooled_projections": {0: BATCH}}
SHAPES: dict[str, dict[str, dict[int, Any]]] = {
    "dit": {"hidden_states": {0: BATCH}, "timestep": {0: BATCH}, "class_labels": {0: BATCH}},
    "pixart": {
        "hidden_states": {0: BATCH, 2: 2 * HALF},
        "timestep": {0: BATCH},
        "encoder_attention_mask": {0: BATCH, 1: TEXT},
        **WITH_TEXT,
    },
    "sd3": {
        "hidden_states": {0: BATCH, 2: 2 * Dim("half", min=2, max=4)},  # its table of positions has 8 rows
        **POOLED,
        **WITH_TEXT,
    },
    "flux": {
        "hidden_states": {0: BATCH, 1: 4 * HALF},
        "img_ids": {0: 4 * HALF},
        "txt_ids": {0: TEXT},
        "guidance": {0: BATCH},
        **POOLED,
        **WITH_TEXT,
    },
    "wan": {"hidden_states": {0: BATCH, 3: 2 * HALF}, "timestep": {0: BATCH}, **WITH_TEXT},
}


def planned(name: str) -> tuple[nn.Module, Plan]:
    """The model, and a plan with all that is not pruning."""
    torch.compiler.reset()
    return SIZED[name].build(), random_plan(2, tuple(FAMILIES[name].regions), STEPS)


def sizes_of(name: str) -> tuple[Size, ...]:
    if name == "dit":  # takes one resolution
        return (Size(batch=5, rows=FIRST.rows, text=FIRST.text),)
    if name == "pixart":  # is another graph at 8 rows
        return FIRST, OTHER
    return (OTHER,)


def run(denoiser: Any, calls: Calls) -> list[Tensor]:
    with torch.no_grad(), soda_compile.trajectory(denoiser):
        return [tensors(denoiser(**call))[0] for call in calls]


@pytest.mark.parametrize("name", gated("dit", others=SHAPES))
def test_all_sizes_of_a_family(name: str, tmp_path: Path) -> None:
    model, plan = planned(name)
    example = SIZED[name].calls(FIRST, STEPS)[0]
    with toy.eager_subgraphs():
        path = soda_compile.export(
            model, example, plan=plan, path=tmp_path / "sized.soda.pt2", dynamic_shapes=SHAPES[name]
        )
        denoiser = soda_compile.load(path)
        for size in sizes_of(name):
            calls = SIZED[name].calls(size, STEPS)
            by_hooks = EagerReference(model, FAMILIES[name].regions, plan).run(calls)
            for ours, (theirs,) in zip(run(denoiser, calls), by_hooks, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
