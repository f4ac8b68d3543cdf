"""Eight diffusers pipelines, accelerated: the subgraphs run without Inductor, everything else is as it is for users."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from pipelines import PIPELINES, STEPS, TinyPipeline, attributes, close, same
from random_plans import random_plan
from thorough import gated

import soda_compile
from soda_compile.plans.plan import Plan, compute_all_plan


@dataclass(frozen=True)
class Run:
    """One pipeline before and after acceleration by a random plan."""

    tiny: TinyPipeline
    pipe: Any
    plan: Plan
    attributes: list[set[str]]
    original: Tensor
    by_hooks: Tensor
    first: Tensor


pytestmark = pytest.mark.usefixtures("eager_throughout")


@pytest.fixture(scope="module", params=gated("dit", "flux", others=PIPELINES))
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    tiny = PIPELINES[request.param]
    pipe = tiny.build()
    original = tiny.draw(pipe)
    before = attributes(pipe, "transformer")
    plan = random_plan(3, tuple(tiny.regions), STEPS)
    by_hooks = tiny.draw_by_hooks(pipe, plan)
    soda_compile.accelerate(pipe, plan)
    yield Run(tiny, pipe, plan, before, original, by_hooks, tiny.draw(pipe))
    torch.compiler.reset()


def test_a_cached_generation_is_what_hooks_make_of_the_plan(run: Run) -> None:
    close(run.first, run.by_hooks)
    assert (run.first - run.original).abs().max() > 1e-3 * run.original.abs().max()


def test_a_generation_does_not_depend_on_those_before(run: Run) -> None:
    other = run.tiny.draw(run.pipe, seed=1)
    assert (other - run.first).abs().max() > 1e-3
    same(run.tiny.draw(run.pipe), run.first)
    same(run.tiny.draw(run.pipe, seed=1), other)


@pytest.mark.parametrize("last", [0, 2])
def test_an_interrupted_generation_leaves_nothing(run: Run, last: int) -> None:
    """By an exception, and where the pipeline knows it by ``pipe._interrupt``."""

    class Stop(Exception):
        pass

    done = []

    def stop(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        done.append(step)
        if step == last and raises:
            raise Stop
        pipe._interrupt = step == last
        return values

    def stop_in_step(*arguments: Any, **options: Any) -> None:
        done.append(len(done))
        if len(done) == last + 1:
            raise Stop

    raises = False
    if hasattr(run.pipe, "interrupt"):
        run.tiny.draw(run.pipe, seed=1, callback_on_step_end=stop)
        assert done == list(range(last + 1))
        same(run.tiny.draw(run.pipe), run.first)
        done.clear()
        raises = True
        with pytest.raises(Stop):
            run.tiny.draw(run.pipe, seed=1, callback_on_step_end=stop)
    else:
        handle = run.pipe.transformer.register_forward_hook(stop_in_step)
        with pytest.raises(Stop):
            run.tiny.draw(run.pipe, seed=1)
        handle.remove()
    assert len(done) == last + 1
    same(run.tiny.draw(run.pipe), run.first)


def test_restoring_gives_the_original_bit_for_bit(run: Run) -> None:
    """The last test of each pipeline."""
    soda_compile.restore(run.pipe)
    assert attributes(run.pipe, "transformer") == run.attributes
    same(run.tiny.draw(run.pipe), run.original)


@pytest.mark.parametrize("name", gated("wan", others=["qwen"]))  # test_families.py has the other models
def test_computing_everything_is_the_pipelines_own(name: str) -> None:
    tiny = PIPELINES[name]
    pipe = tiny.build()
    original = tiny.draw(pipe)
    soda_compile.accelerate(pipe, compute_all_plan(tuple(tiny.regions), STEPS))
    close(tiny.draw(pipe), original)
    torch.compiler.reset()
