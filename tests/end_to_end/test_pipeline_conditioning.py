"""Pipelines whose modulations are computed for all steps at once."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from pipelines import PIPELINES, STEPS, close
from random_plans import random_plan
from tracing import graphs_as_they_are

import soda_compile
from soda_compile.runtime import conditioning_cache
from soda_compile.runtime.conditioning_cache import ConditioningCache


@pytest.fixture(autouse=True)
def eager_lowering(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    graphs_as_they_are(monkeypatch)
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize("name", ["dit", "flux", "wan", "cogvideox"])
def test_generations_are_those_of_the_plan(name: str, readable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise scheduler tells which timesteps come, where the host cannot read them."""
    if not readable:
        monkeypatch.setattr(conditioning_cache, "on_host", lambda value: False)
    computed = []
    begin = ConditioningCache._begin

    def noted(*arguments: Any) -> Any:
        table = begin(*arguments)
        computed.extend(table or ())
        return table

    monkeypatch.setattr(ConditioningCache, "_begin", noted)
    tiny = PIPELINES[name]
    pipe = tiny.build()
    plan = random_plan(3, tuple(tiny.regions), STEPS)
    seeds = (0, 0, 1)
    soda_compile.accelerate(pipe, plan)
    wanted = [tiny.draw(pipe, seed=seed) for seed in seeds]
    soda_compile.restore(pipe)
    assert not computed
    soda_compile.accelerate(pipe, plan, conditioning="trajectory")
    close(tiny.draw(pipe, seed=0), wanted[0])
    assert not computed, "nobody knows the timesteps of the first generation"
    for seed, other in zip(seeds[1:], wanted[1:], strict=True):
        close(tiny.draw(pipe, seed=seed), other)
    assert computed
    soda_compile.restore(pipe)
