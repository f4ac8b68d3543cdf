"""Models that reach the backend block by block, under hooks or because their blocks are compiled: nothing dies."""

from collections.abc import Callable

import pytest
import torch
from families import FAMILIES
from thorough import gated
from torch import nn

import soda_compile
from soda_compile.errors import PlanError
from soda_compile.plans.actions import COMPUTE, REUSE
from soda_compile.plans.plan import Plan

DEVICE = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("eager")


def compile_offloaded(model: nn.Module, plan: Plan, **options: str) -> None:
    model.enable_group_offload(DEVICE, DEVICE, offload_type="block_level", num_blocks_per_group=1)  # type: ignore[operator]
    model.compile(backend="soda", options={"plan": plan, **options})


def compile_blocks(model: nn.Module, plan: Plan, **options: str) -> None:
    model.compile_repeated_blocks(backend="soda", options={"plan": plan, **options})  # type: ignore[operator]


def every_second(names: tuple[str, ...]) -> Plan:
    return Plan("", names, ((COMPUTE, REUSE) * 2,) * len(names))


@pytest.mark.parametrize(("name", "compiled"), gated(("flux", compile_blocks), others=[("sd3", compile_offloaded)]))
def test_a_plan_for_the_whole_model_is_not_followed(name: str, compiled: Callable[..., None]) -> None:
    """Calls run without it, and say so with the way out; below the same of another family."""
    family = FAMILIES[name]
    model, plain = family.build(), family.build()
    compiled(model, every_second(tuple(family.regions)))
    with torch.no_grad():
        for call in family.trajectory(4):
            torch.testing.assert_close(model(**call), plain(**call))
    counted = soda_compile.stats(model)["model"]
    assert counted["calls"] == 0
    assert counted["misses"].keys() == {"structure"}
    assert "group offloading: accelerate(pipe, plan)" in counted["reasons"]["structure"]


@pytest.mark.thorough
def test_the_only_block_of_a_model_is_still_a_part_of_it() -> None:
    """It has as many regions as the plan, under other names."""
    family = FAMILIES["wan"]
    model, plain = family.build(), family.build()
    model.blocks, plain.blocks = model.blocks[:1], plain.blocks[:1]
    compile_offloaded(model, every_second(tuple(name for name in family.regions if name.startswith("blocks.0."))))
    with torch.no_grad():
        for call in family.trajectory(4):
            torch.testing.assert_close(model(**call), plain(**call))
    assert soda_compile.stats(model)["model"]["misses"].keys() == {"structure"}


@pytest.mark.parametrize("compiled", [compile_offloaded, compile_blocks])
def test_it_can_be_refused(compiled: Callable[..., None]) -> None:
    family = FAMILIES["wan"]
    model = family.build()
    compiled(model, every_second(tuple(family.regions)), on_miss="error")
    with torch.no_grad(), pytest.raises(PlanError, match="the plan is for another model"):
        model(**family.inputs(0, 4))


def test_a_plan_for_another_model_with_blocks_of_the_same_names_is_an_error() -> None:
    family = FAMILIES["wan"]
    model = family.build()
    names = tuple(f"blocks.{layer}.{name}" for layer in range(3) for name in ("attn1", "attn2", "ffn"))
    model.compile(backend="soda", options={"plan": every_second(names)})
    with torch.no_grad(), pytest.raises(PlanError, match="the plan is for another model"):
        model(**family.inputs(0, 4))


def test_blocks_follow_plans_of_their_own() -> None:
    """A block is a model: its calls are counted by themselves."""
    family = FAMILIES["wan"]
    model, plain = family.build(), family.build()
    model.compile_repeated_blocks(backend="soda", options={"plan": every_second(("attn1", "attn2", "(tail).ffn"))})
    call = family.inputs(0, 4)
    with torch.no_grad():
        for _ in range(4):  # of equal inputs, so that what is reused is what would be computed
            torch.testing.assert_close(model(**call), plain(**call), rtol=1e-4, atol=1e-5)
    for block in model.blocks:
        counted = soda_compile.stats(block)["model"]
        assert (counted["calls"], counted["misses"]) == (4, {})
        assert counted["regions"] == {"compute": 6, "reuse": 6}
