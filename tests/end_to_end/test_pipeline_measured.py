"""Settings without a plan that are measured in the generations that users run, on_miss="measure"."""

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines import SMALL_SD3 as SD3
from pipelines import STEPS, close
from thorough import gated
from threads import at_once

import soda_compile
from soda_compile import stats
from soda_compile.acceleration import measuring
from soda_compile.acceleration.beside import THREAD
from soda_compile.errors import OptionError
from soda_compile.plans.plan import compute_all_plan
from soda_compile.plans.sensitivity import Sensitivity

OTHER, NEEDED = 7, 2


pytestmark = pytest.mark.usefixtures("eager")


def inputs() -> dict[str, Any]:
    return SD3.inputs(torch.Generator().manual_seed(7), 1)


def accelerated(cache: Path, **options: Any) -> Any:
    options = {"speedup": 1.5, "num_inference_steps": STEPS, "on_miss": "measure", "closest": 0, **options}
    return soda_compile.accelerate(SD3.build(), calibrate_with=[inputs()] * NEEDED, cache=cache, **options)


def counts(pipe: Any) -> tuple[int, int]:
    """Denoiser calls by plan and without one."""
    found = stats(pipe)["transformer"]
    return found["calls"], sum(found["misses"].values())


def test_the_first_generations_are_measured_and_later_ones_accelerated(tmp_path: Path) -> None:
    pipe, plain = accelerated(tmp_path), SD3.build()
    calls = counts(pipe)[0]
    for seed in range(NEEDED):
        close(SD3.draw(pipe, seed, num_inference_steps=OTHER), SD3.draw(plain, seed, num_inference_steps=OTHER))
    assert counts(pipe) == (calls, OTHER * NEEDED)
    assert "2 generations" in stats(pipe)["transformer"]["reasons"]["measured"]
    found = SD3.draw(pipe, 5, num_inference_steps=OTHER)
    assert counts(pipe) == (calls + OTHER, OTHER * NEEDED), "by plan from here on"
    assert (found - SD3.draw(plain, 5, num_inference_steps=OTHER)).abs().max() > 1e-4
    # The next process finds it, whether it would measure or not.
    later = accelerated(tmp_path, num_inference_steps=OTHER, on_miss="error")
    close(SD3.draw(later, 5, num_inference_steps=OTHER), found)


@pytest.mark.thorough
def test_what_is_measured_equals_a_calibration(tmp_path: Path) -> None:
    """The same generations give the same tables, whoever runs them."""
    pipe = accelerated(tmp_path / "users")
    for seed in range(NEEDED):
        SD3.draw(pipe, seed, num_inference_steps=OTHER)
    accelerated(tmp_path / "own", num_inference_steps=OTHER)
    mine, its = (sensitivity(tmp_path / name, OTHER) for name in ("users", "own"))
    assert mine.info.seeds == its.info.seeds
    assert mine.info.timesteps == its.info.timesteps
    assert mine.info.timestep_input == its.info.timestep_input
    for name, table in its.mean.items():
        torch.testing.assert_close(torch.from_numpy(mine.mean[name]), torch.from_numpy(table), equal_nan=True)
    torch.testing.assert_close(mine.step_weights, its.step_weights)


def sensitivity(cache: Path, steps: int) -> Sensitivity:
    found = [Sensitivity.load(path) for path in cache.glob("*/*.sensitivity.safetensors")]
    (one,) = [each for each in found if each.info.steps == steps]
    return one


@pytest.mark.thorough
@pytest.mark.parametrize("change", gated("guidance", others=["adapter"]))
def test_every_kind_of_setting(tmp_path: Path, change: str) -> None:
    pipe, plain = accelerated(tmp_path), SD3.build()
    options: dict[str, Any] = {"num_inference_steps": OTHER}
    if change == "guidance":
        options["guidance_scale"] = 3.0
    else:
        peft = pytest.importorskip("peft")
        for each in (pipe, plain):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                each.transformer.add_adapter(
                    peft.LoraConfig(r=4, target_modules=["to_q"], init_lora_weights=False), "style"
                )
    for seed in range(NEEDED):
        close(SD3.draw(pipe, seed, **options), SD3.draw(plain, seed, **options))
    before = counts(pipe)
    SD3.draw(pipe, 5, **options)
    now = counts(pipe)
    assert now[0] > before[0]
    assert now[1] == before[1]


@pytest.mark.thorough
def test_a_generation_that_is_broken_off_counts_for_nothing(tmp_path: Path) -> None:
    pipe, plain = accelerated(tmp_path), SD3.build()

    class Stop(Exception):
        pass

    def stop(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        raise Stop

    with pytest.raises(Stop):
        SD3.draw(pipe, num_inference_steps=OTHER, callback_on_step_end=stop)
    for seed in range(NEEDED):
        close(SD3.draw(pipe, seed, num_inference_steps=OTHER), SD3.draw(plain, seed, num_inference_steps=OTHER))
    calls = counts(pipe)[0]
    SD3.draw(pipe, num_inference_steps=OTHER)
    assert counts(pipe)[0] == calls + OTHER


@pytest.mark.thorough
def test_generations_at_once(tmp_path: Path) -> None:
    """One is measured at a time; those beside it run plain, none is wrong, and in the end all are accelerated."""
    pipe, plain = accelerated(tmp_path), SD3.build()
    expected = [SD3.draw(plain, seed, num_inference_steps=OTHER) for seed in range(3)]
    barrier, found = threading.Barrier(3), {}

    def serve(seed: int) -> None:
        request = copy.copy(pipe)
        request.scheduler = copy.deepcopy(pipe.scheduler)
        barrier.wait(timeout=60)
        found[seed] = SD3.draw(request, seed, num_inference_steps=OTHER)

    at_once(serve, range(3), timeout=300)
    assert len(found) == 3
    if not counts(pipe)[0]:  # none began after the second measurement had ended
        for seed, sample in found.items():
            close(sample, expected[seed])
    for seed in range(NEEDED):
        SD3.draw(pipe, seed, num_inference_steps=OTHER)
    before = counts(pipe)[0]
    SD3.draw(pipe, num_inference_steps=OTHER)
    assert counts(pipe)[0] == before + OTHER


@pytest.mark.thorough
def test_what_cannot_be_measured_runs_without_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, plain = accelerated(tmp_path), SD3.build()
    monkeypatch.setattr(measuring, "MEMORY_BYTES", 1)
    for seed in range(NEEDED + 1):
        close(SD3.draw(pipe, seed, num_inference_steps=OTHER), SD3.draw(plain, seed, num_inference_steps=OTHER))
    assert "could not be measured: memory_bytes is 1" in stats(pipe)["transformer"]["reasons"]["outside"]


def test_a_given_plan_says_what_to_do() -> None:
    plan = compute_all_plan(tuple(SD3.regions), STEPS)
    with pytest.raises(OptionError, match="pass speedup="):
        soda_compile.accelerate(SD3.build(), plan, on_miss="measure")
    with pytest.raises(OptionError, match="accelerate\\(pipe, speedup"):
        soda_compile.check_options({"on_miss": "measure"})


def wait() -> None:
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join()


def test_lazily_nothing_is_run_ahead_and_generations_go_on_while_a_thread_compiles(tmp_path: Path) -> None:
    pipe, plain = accelerated(tmp_path, when="lazily", on_miss="plain"), SD3.build()
    assert counts(pipe) == (0, 0)
    for seed in range(NEEDED + 1):  # the last begins to compile
        close(SD3.draw(pipe, seed), SD3.draw(plain, seed))
    assert counts(pipe)[0] == 0
    wait()
    found = SD3.draw(pipe, 5)
    assert counts(pipe)[0] == STEPS, "by plan, and nothing that the thread ran is counted"
    again = accelerated(tmp_path, when="lazily")
    close(SD3.draw(again, 5), found)
    assert counts(again) == (STEPS, 0), "the next process is fast from the start"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"when": "later"}, "when is 'later'; it must be one of now, lazily"),
        ({"when": "lazily", "on_miss": "error"}, "on_miss='error' forbids"),
        ({"when": "lazily", "verify": 2}, "leave out measurement, refresh, closest and verify"),
        ({"when": "lazily", "speedup": None, "plan": "p.json"}, "leave it out where a plan is given"),
    ],
)
def test_what_cannot_be_done_lazily_is_named(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        accelerated(tmp_path, **options)


@pytest.mark.thorough
def test_a_plan_that_was_compiled_in_a_call_is_followed_by_all_later_generations(tmp_path: Path) -> None:
    first = accelerated(tmp_path, when="lazily")
    for seed in range(NEEDED):
        SD3.draw(first, seed)
    again = accelerated(tmp_path, when="lazily")
    for seed in range(3):
        SD3.draw(again, seed)
    assert counts(again) == (3 * STEPS, 0)
