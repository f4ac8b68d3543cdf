"""The one line with plans that are tried: the closest on generations of the pipeline is stored, and found again."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from pipelines import SMALL_SD3 as SD3
from pipelines import STEPS, close

import soda_compile
from soda_compile.acceleration import trying
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
    alone = accelerated(tmp_path)
    pipe = accelerated(tmp_path, closest=TRIED)
    told = capsys.readouterr().err
    assert told.count("measuring") == 1, "what was measured serves"
    assert "simulating intervals on 2 generations" in told
    assert "trying plans of 8 strategies on 2 generations" in told
    assert "fixed interval, reuse" in told.partition("closest: ")[2]
    plans = stored(tmp_path)
    assert plans[True] != plans[False]
    assert plans[True].flop_ratio <= 1 / 1.5
    seeds = range(1, 1 + TRIED)  # seed 0 was measured
    assert error(pipe, seeds) < error(alone, seeds)

    monkeypatch.setattr(trying, "record", None)  # nothing is tried again
    close(SD3.draw(accelerated(tmp_path, closest=TRIED), 9), SD3.draw(pipe, 9))
    close(SD3.draw(accelerated(tmp_path), 9), SD3.draw(alone, 9))


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
