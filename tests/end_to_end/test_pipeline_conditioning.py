"""Pipelines whose modulations are computed for all steps at once."""

from functools import cache
from typing import Any

import pytest
from torch import Tensor

pytest.importorskip("diffusers")

from pipelines import PIPELINES, STEPS, close
from random_plans import random_plan
from thorough import gated

import soda_compile
from soda_compile.plans.plan import Plan
from soda_compile.runtime import conditioning_cache, unchanged
from soda_compile.runtime.conditioning_cache import ConditioningCache

pytestmark = pytest.mark.usefixtures("eager")


SEEDS = (0, 0, 1)


@cache
def planned(name: str) -> tuple[Any, Plan, list[Tensor]]:
    """A pipeline, a plan for it, and what it draws by this plan for each seed."""
    tiny = PIPELINES[name]
    pipe = tiny.build()
    plan = random_plan(3, tuple(tiny.regions), STEPS)
    soda_compile.accelerate(pipe, plan)
    drawn = [tiny.draw(pipe, seed=seed) for seed in SEEDS]
    soda_compile.restore(pipe)
    return pipe, plan, drawn


@pytest.mark.parametrize(
    ("name", "readable"),
    gated(("dit", True), others=[("wan", False), ("flux", True), ("flux", False), ("wan", True), ("cogvideox", True)]),
)
def test_generations_are_those_of_the_plan(name: str, readable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise scheduler tells which timesteps come, where the host cannot read them."""
    if not readable:
        for module in (conditioning_cache, unchanged):
            monkeypatch.setattr(module, "on_host", lambda value: False)
    computed = []
    begin = ConditioningCache._begin

    def noted(*arguments: Any) -> Any:
        table = begin(*arguments)
        computed.extend(table or ())
        return table

    monkeypatch.setattr(ConditioningCache, "_begin", noted)
    pipe, plan, wanted = planned(name)
    assert not computed
    draw = PIPELINES[name].draw
    soda_compile.accelerate(pipe, plan, conditioning="trajectory")
    close(draw(pipe, seed=SEEDS[0]), wanted[0])
    assert not computed, "nobody knows the timesteps of the first generation"
    for seed, other in zip(SEEDS[1:], wanted[1:], strict=True):
        close(draw(pipe, seed=seed), other)
    assert computed
    soda_compile.restore(pipe)
