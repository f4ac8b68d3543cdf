"""The one line tries plans: the closest on generations of the pipeline is stored, found again, and shared."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from pipelines import PIPELINES, STEPS, close, samples
from pipelines import SMALL_SD3 as SD3

import soda_compile
from soda_compile.acceleration import trying
from soda_compile.errors import OptionError, SensitivityError
from soda_compile.plans.plan import Plan

TRIED = 2


pytestmark = pytest.mark.usefixtures("eager")


def accelerated(cache: Path, **options: Any) -> Any:
    inputs = [SD3.inputs(torch.Generator().manual_seed(7), 1)]  # those of ``draw``
    options = {"speedup": 1.5, "num_inference_steps": STEPS, "calibrate_with": inputs, **options}
    return soda_compile.accelerate(SD3.build(), cache=cache, **options)


def stored(cache: Path) -> dict[bool, Plan]:
    """Stored plans, by whether they were tried."""
    return {"-tried-" in path.name: Plan.load(path) for path in cache.glob("*/*.plan.json")}


def error(pipe: Any, seeds: range) -> float:
    """The mean relative error over generations."""
    plain = SD3.build()
    pairs = [(SD3.draw(pipe, seed), SD3.draw(plain, seed)) for seed in seeds]
    return sum(float((found - original).norm() / original.norm()) for found, original in pairs) / len(pairs)


@pytest.mark.thorough
def test_the_closest_plan_is_followed_stored_and_found_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = accelerated(tmp_path, closest=0)
    pipe = accelerated(tmp_path, closest=TRIED)
    told = capsys.readouterr().err
    assert told.count("measuring") == 1, "what was measured serves"
    assert "simulating intervals on 2 generations" in told
    assert "trying plans of 8 strategies on 2 generations" in told
    assert re.search(r"closest is the plan '.+' with fitted weights: .+% off on these generations instead of .+%", told)
    plans = stored(tmp_path)
    assert plans[True] != plans[False]
    assert plans[True].flop_ratio <= 1 / 1.5
    seeds = range(1, 1 + TRIED)  # seed 0 was measured
    assert error(pipe, seeds) < error(alone, seeds)

    monkeypatch.setattr(trying, "record", None)  # nothing is tried again
    close(SD3.draw(accelerated(tmp_path, closest=TRIED), 9), SD3.draw(pipe, 9))
    close(SD3.draw(accelerated(tmp_path, closest=0), 9), SD3.draw(alone, 9))


@pytest.mark.thorough
def test_a_saved_measurement_brings_the_plan_that_was_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = accelerated(tmp_path / "store", closest=1, verify=1)
    assert "(seeds 2)" in capsys.readouterr().err, "seed 0 was measured, and seed 1 tried"
    saved = soda_compile.save_measurement(pipe, tmp_path / "saved")
    (plan,) = saved.glob("*.plan.json")
    assert Plan.load(plan) == stored(tmp_path / "store")[True]
    monkeypatch.setattr(trying, "record", None)
    other = soda_compile.accelerate(SD3.build(), speedup=1.5, measurement=saved, cache=tmp_path / "none")
    close(SD3.draw(other, 9), SD3.draw(pipe, 9))
    alone = soda_compile.accelerate(SD3.build(), speedup=1.5, measurement=saved, closest=0)
    assert soda_compile.save_measurement(alone, tmp_path / "alone")
    (untried,) = (tmp_path / "alone").glob("*.plan.json")
    assert Plan.load(untried) == stored(tmp_path / "store")[False]


@pytest.mark.parametrize("closest", [None, 1])
def test_where_generations_cannot_be_run_again_that_is_said_or_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], closest: int | None
) -> None:
    pipe = SD3.build()

    def blank(pipe: Any, step: int, timestep: Any, latents: dict[str, Any]) -> dict[str, Any]:
        return {"latents": latents["latents"] * 0.5}

    def generate(seed: int) -> Any:
        return SD3.draw(pipe, seed, callback_on_step_end=blank)

    options = {"speedup": 1.5, "calibrate_with": generate, "cache": tmp_path, "closest": closest}
    if closest:
        with pytest.raises(SensitivityError, match="changed between FlowMatchEulerDiscreteScheduler and step 1"):
            soda_compile.accelerate(pipe, **options)
        return
    for _ in range(2):
        soda_compile.accelerate(pipe, **options)
        soda_compile.restore(pipe)
    told = capsys.readouterr().err
    assert told.count("no plans are tried (SensitivityError: the sample is changed") == 1
    plans = stored(tmp_path)
    assert plans[True].actions == plans[False].actions, "kept, so that it is not attempted again"


@pytest.mark.thorough
@pytest.mark.parametrize("name", PIPELINES)
def test_whatever_the_pipeline_plans_are_tried_or_it_is_said_why(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trying, "TRIED", 1)
    tiny = PIPELINES[name]
    pipe, options = tiny.build(), {"num_inference_steps": STEPS, "calibrate_with": samples(tiny)}
    soda_compile.accelerate(pipe, speedup=1.3, cache=tmp_path, **options)
    mixes_rows = name == "dit"  # its guidance is of a doubled sample
    expected = "not a sum of the denoiser's outputs" if mixes_rows else "closest is the plan"
    assert expected in capsys.readouterr().err
    assert tiny.draw(pipe).isfinite().all()


def test_plans_are_tried_by_default_where_they_can_be() -> None:
    one, two = {"transformer": None}, {"transformer": None, "transformer_2": None}
    assert trying.number_tried(None, one, None, now=True) == trying.TRIED
    assert trying.number_tried(None, two, None, now=True) == 0
    assert trying.number_tried(None, one, soda_compile.FixedInterval(), now=True) == 0
    assert trying.number_tried(None, one, None, now=False) == 0
    assert trying.number_tried(2, one, soda_compile.FixedInterval(), now=True) == 2
    with pytest.raises(OptionError, match="there are transformer, transformer_2; leave closest out"):
        trying.number_tried(2, two, None, now=True)


@pytest.mark.thorough
def test_what_does_not_fit_the_memory_is_not_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trying, "free_bytes", lambda device: 1000)
    accelerated(tmp_path, closest=1)
    told = capsys.readouterr().err
    assert "no intervals are simulated: memory_bytes=1000" in told
    assert "trying plans of 4 strategies" in told


@pytest.mark.thorough
def test_it_is_measured_and_tried_at_one_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = accelerated(tmp_path, closest=1)
    assert ["measuring" in line or "trying" in line for line in capsys.readouterr().err.splitlines()].count(True) == 2
    other = accelerated(tmp_path, closest=1)
    close(SD3.draw(pipe, 3), SD3.draw(other, 3))
    SD3.draw(pipe, num_inference_steps=STEPS + 1)  # by a plan of the measurement alone
    assert not soda_compile.stats(pipe)["transformer"]["misses"]
