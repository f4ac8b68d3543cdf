"""Pipelines that share a denoiser, copies of their scheduler, and requests that run at once: each has its own state."""

import copy
import pickle
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import diffusers
import pytest
import torch
from pipelines import NO_TEXT_3, PIPELINES, STEPS, close, same, sd3_plan
from pipelines import SMALL_SD3 as SD3
from thorough import gated
from threads import at_once
from torch import Tensor

import soda_compile
from soda_compile.errors import OptionError
from soda_compile.integrations.diffusers.scheduler_ties import ties_of

pytestmark = pytest.mark.usefixtures("eager")


def sharing(pipe: Any, scheduler: Any = None) -> Any:
    """Another pipeline around the same denoiser."""
    scheduler = scheduler or diffusers.FlowMatchEulerDiscreteScheduler()
    other = diffusers.StableDiffusion3Pipeline(transformer=pipe.transformer, scheduler=scheduler, **NO_TEXT_3)
    other.set_progress_bar_config(disable=True)
    return other


def interrupt(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
    if step == 1:
        pipe._interrupt = True
    return {}


def fail(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
    if step == 1:
        raise KeyboardInterrupt
    return {}


@pytest.mark.parametrize("leave", [interrupt, fail])
def test_another_pipeline_runs_plain_whatever_the_first_left(leave: Callable[..., Any]) -> None:
    pipe = SD3.build()
    other, original = sharing(pipe), SD3.draw(SD3.build(), seed=5)
    soda_compile.accelerate(pipe, sd3_plan())
    fast = SD3.draw(pipe)
    for _ in range(2):
        with suppress(KeyboardInterrupt):
            SD3.draw(pipe, callback_on_step_end=leave)
        kept = soda_compile.stats(pipe)["transformer"]["slot_bytes"]
        close(SD3.draw(other, seed=5), original)
        assert soda_compile.stats(pipe)["transformer"]["slot_bytes"] == kept
    same(SD3.draw(pipe), fast)


@pytest.mark.parametrize("leave", gated(interrupt, others=[None]))
def test_another_pipeline_in_a_callback(leave: Callable[..., Any] | None) -> None:
    pipe, plan = SD3.build(), sd3_plan()
    other, original = sharing(pipe), SD3.draw(SD3.build(), seed=5)
    soda_compile.accelerate(pipe, plan)
    fast = SD3.draw(pipe)

    def preview(*_: Any) -> dict[str, Any]:
        found = SD3.draw(other, seed=5, callback_on_step_end=leave)
        if leave is None:
            close(found, original)
        return {}

    same(SD3.draw(pipe, callback_on_step_end=preview), fast)


def test_both_pipelines_are_accelerated_each_by_its_plan() -> None:
    pipe = SD3.build()
    other = sharing(pipe)
    plans = [sd3_plan(3), sd3_plan(4)]
    expected = [SD3.draw_by_hooks(pipe, plan, seed=seed) for seed, plan in enumerate(plans)]
    original = SD3.draw(pipe)
    for each, plan in zip((pipe, other), plans, strict=True):
        soda_compile.accelerate(each, plan)

    def between(*_: Any) -> dict[str, Any]:
        close(SD3.draw(other, seed=1), expected[1])
        return {}

    close(SD3.draw(pipe, seed=0, callback_on_step_end=between), expected[0])
    soda_compile.restore(pipe)
    close(SD3.draw(other, seed=1), expected[1])
    close(SD3.draw(pipe), original)
    soda_compile.restore(other)
    assert "forward" not in vars(pipe.transformer)
    same(SD3.draw(pipe), original)
    with pytest.raises(OptionError, match="not accelerated"):
        soda_compile.restore(other)


def test_an_accelerated_pipeline_is_not_copied_with_its_denoisers() -> None:
    pipe = soda_compile.accelerate(SD3.build(), sd3_plan())
    with pytest.raises(OptionError, match=r"cannot be pickled; call soda_compile\.restore"):
        pickle.dumps(pipe)
    with pytest.raises(OptionError, match=r"cannot be copied.*copy\.copy\(pipe\)"):
        copy.deepcopy(pipe)
    with pytest.raises(OptionError, match="a copy of an accelerated one"):
        soda_compile.restore(copy.copy(pipe))
    soda_compile.restore(pipe)


COPIES = [
    copy.copy,
    copy.deepcopy,
    lambda scheduler: type(scheduler).from_config(scheduler.config),
    lambda scheduler: copy.copy(copy.deepcopy(scheduler)),
]


@pytest.mark.parametrize("make", gated(copy.copy, copy.deepcopy, others=COPIES))
def test_requests_with_copies_of_the_scheduler(make: Callable[[Any], Any]) -> None:
    """As servers do: a pipeline for each request, that shares everything but its scheduler, all at once."""
    pipe = soda_compile.accelerate(SD3.build(), sd3_plan())
    expected = [SD3.draw(pipe, seed=seed) for seed in range(3)]
    barrier = threading.Barrier(3)
    results: dict[int, Tensor] = {}

    def work(seed: int) -> None:
        request = copy.copy(pipe)
        request.scheduler = make(pipe.scheduler)

        def wait(*_: Any) -> dict[str, Any]:
            barrier.wait(timeout=120)
            return {}

        results[seed] = SD3.draw(request, seed=seed, callback_on_step_end=wait)

    at_once(work, range(3), timeout=300)
    for seed, wanted in enumerate(expected):
        same(results[seed], wanted)
    counted = soda_compile.stats(pipe)["transformer"]
    assert counted["misses"] == {}
    assert counted["slot_bytes"] == 0, "what a scheduler drives ends with it"


def test_a_file_holds_the_scheduler_as_it_was() -> None:
    pipe = SD3.build()
    kind = type(pipe.scheduler)
    soda_compile.accelerate(pipe, sd3_plan())
    assert ties_of(pipe.scheduler) is not None
    loaded = pickle.loads(pickle.dumps(pipe.scheduler))
    assert type(loaded) is kind
    assert dict(loaded.config) == dict(pipe.scheduler.config)
    duplicate = copy.copy(pipe.scheduler)
    duplicate.set_timesteps(3)
    assert len(pipe.scheduler.timesteps) != 3
    soda_compile.restore(pipe)
    assert type(pipe.scheduler) is kind
    duplicate.set_timesteps(4)
    assert len(duplicate.timesteps) == 4


def test_a_pipeline_made_from_another_follows_its_plan() -> None:
    pipe = soda_compile.accelerate(SD3.build(), sd3_plan())
    fast = SD3.draw(pipe)
    made = diffusers.StableDiffusion3Pipeline.from_pipe(pipe)
    made.set_progress_bar_config(disable=True)
    same(SD3.draw(made), fast)


def test_a_loop_of_ones_own_with_the_scheduler() -> None:
    """The scheduler is a local variable; the denoiser is called from a function that holds none."""
    tiny = PIPELINES["flux"]
    pipe = tiny.build()
    plan = soda_compile.compute_all_plan(tuple(tiny.regions), STEPS)
    soda_compile.accelerate(pipe, plan)
    fast = tiny.draw(pipe)
    before = soda_compile.stats(pipe)["transformer"]["calls"]
    assert before == tiny.calls_per_step * STEPS
    forward = pipe.transformer.forward

    def called_elsewhere(*arguments: Any, **options: Any) -> Any:
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(torch.no_grad()(forward)(*arguments, **options)))
        thread.start()
        thread.join(timeout=60)
        return results[0]

    pipe.transformer.forward = called_elsewhere
    close(tiny.draw(pipe), fast)
    counted = soda_compile.stats(pipe)["transformer"]
    assert (counted["calls"], counted["misses"]) == (before, {"outside": before}), "another thread holds no pipeline"
