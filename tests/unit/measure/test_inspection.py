"""Inspection of models as users have them: compiled, or with the hooks of a framework on them."""

from collections.abc import Callable

import pytest
import torch
from families import FAMILIES
from torch import nn

import soda_compile

DEVICE = torch.device("cpu")


def blocks_offloaded(model: nn.Module) -> None:
    model.enable_group_offload(DEVICE, DEVICE, offload_type="block_level", num_blocks_per_group=1)  # type: ignore[operator]


def leaves_offloaded(model: nn.Module) -> None:
    model.enable_group_offload(DEVICE, DEVICE, offload_type="leaf_level")  # type: ignore[operator]


def cast_by_layer(model: nn.Module) -> None:
    model.enable_layerwise_casting(torch.bfloat16, torch.float32)  # type: ignore[operator]


def compiled(model: nn.Module) -> None:
    model.compile()


def with_an_adapter(model: nn.Module) -> None:
    peft = pytest.importorskip("peft")
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q"]))  # type: ignore[operator]


@pytest.mark.parametrize("change", [blocks_offloaded, leaves_offloaded, cast_by_layer, compiled, with_an_adapter])
def test_the_regions_are_those_of_the_model_as_it_was(change: Callable[[nn.Module], None]) -> None:
    family = FAMILIES["sd3"]
    model = family.build()
    change(model)
    assert soda_compile.inspect(model, **family.inputs(0, 4)).region_names == tuple(family.regions)
