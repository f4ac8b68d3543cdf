"""What a plan was measured under: found again for the same, served with a note for other settings, never misread.

Where a message gives advice, the test follows it.
"""

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from pipelines import NO_TEXT_3, PIPELINES, STEPS, TinyPipeline, close, samples, vae
from pipelines import SMALL_SD3 as SD3
from thorough import gated

import soda_compile
from soda_compile import stats
from soda_compile.errors import TrajectoryError
from soda_compile.plans.plan import Plan

DIT, FLUX = PIPELINES["dit"], PIPELINES["flux"]
SIGMAS = [1.0, 0.9, 0.7, 0.4, 0.1]


pytestmark = pytest.mark.usefixtures("eager")


def inputs(tiny: TinyPipeline, **more: Any) -> list[dict[str, Any]]:
    """What to measure on, without what is passed in ``pipeline_options``."""
    left_out = ("height", "width", "true_cfg_scale")
    return [{**{name: value for name, value in samples(tiny)[0].items() if name not in left_out}, **more}]


def accelerated(pipe: Any, cache: Path, tiny: TinyPipeline = SD3, **options: Any) -> Any:
    options = {"speedup": 1.5, "num_inference_steps": STEPS, "calibrate_with": inputs(tiny), "closest": 0, **options}
    usual = {"height": 64, "width": 64, **({"true_cfg_scale": 2.0} if tiny is FLUX else {})}
    options["pipeline_options"] = {**usual, **options.get("pipeline_options", {})}
    return soda_compile.accelerate(pipe, cache=cache, **options)


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was told of measurements of other settings, since the last time."""
    found = [record.getMessage() for record in caplog.records if record.name.startswith("soda_compile")]
    caplog.clear()
    return [message for message in found if "the nearest measurement serves" in message]


def misses(pipe: Any) -> int:
    return sum(stats(pipe)["transformer"]["misses"].values())


def advised(note: str) -> dict[str, Any]:
    """The arguments of ``accelerate`` that a message names."""
    steps, options = re.search(r"num_inference_steps=(\d+)", note), re.search(r"pipeline_options=(\{.*?\})", note)
    assert steps is not None
    found: dict[str, Any] = {"num_inference_steps": int(steps[1])}
    if options is not None:
        found["pipeline_options"] = json.loads(options[1].replace("'", '"'))
    return found


CALLS: list[tuple[TinyPipeline, dict[str, Any], str]] = [
    (SD3, {"guidance_scale": 3.0}, "guidance_scale=3 instead of 7"),
    (SD3, {"height": 32}, "height=32 instead of 64"),
    (FLUX, {"true_cfg_scale": 4.0}, "true_cfg_scale=4 instead of 2"),
    (SD3, {"num_inference_steps": STEPS + 2}, f"{STEPS + 2} steps instead of {STEPS}"),
]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("tiny", "call", "told"), gated(CALLS[0], others=CALLS), ids=["guidance", "size", "true guidance", "steps"]
)
def test_another_setting_is_served_with_a_note_whose_advice_works(
    tiny: TinyPipeline, call: dict[str, Any], told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = accelerated(tiny.build(), tmp_path, tiny)
    tiny.draw(pipe)
    assert notes(caplog) == []
    before = misses(pipe)
    for _ in range(2):
        tiny.draw(pipe, **call)
    (note,) = notes(caplog)
    assert told in note
    assert misses(pipe) == before, "by plan"
    soda_compile.restore(pipe)
    accelerated(pipe, tmp_path, tiny, **advised(note))
    tiny.draw(pipe, **call)
    assert notes(caplog) == []
    assert len(list(tmp_path.glob("[!.]*"))) == 2
    # Both are found from now on, and each serves its own calls.
    tiny.draw(pipe)
    assert notes(caplog) == []


@pytest.mark.parametrize("name", gated("dit", others=PIPELINES))
def test_a_generation_shows_the_setting_that_was_measured(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of every pipeline, by its signature alone; the batch is no part of it."""
    tiny = PIPELINES[name]
    options = {"num_inference_steps": STEPS, "calibrate_with": samples(tiny), "cache": tmp_path, "closest": 0}
    pipe = soda_compile.accelerate(tiny.build(), speedup=1.3, on_miss="error", **options)
    tiny.draw(pipe, batch=2)
    assert notes(caplog) == []
    (setting,) = tmp_path.glob("*/setting.json")
    call = json.loads(setting.read_text())["call"]
    sizes = {"height", "width"} & set(tiny.inputs(torch.Generator(), 1))
    assert sizes <= set(call)
    assert {"guidance_scale", "true_cfg_scale"} & set(call)
    assert not {"num_inference_steps", "return_dict", "class_labels"} & set(call)


@pytest.mark.thorough
def test_the_nearest_of_several_serves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = SD3.build()
    for more in ({"height": 64}, {"height": 32}):
        accelerated(pipe, tmp_path, pipeline_options=more)
        soda_compile.restore(pipe)
    accelerated(pipe, tmp_path)
    SD3.draw(pipe, height=32, guidance_scale=3.0)
    (note,) = notes(caplog)
    assert "guidance_scale=3 instead of 7" in note
    assert "height" not in note.partition(". To measure")[0], "the guidance alone differs from one of them"


@pytest.mark.thorough
def test_sigmas_of_ones_own_do_not_collide_with_the_schedulers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is stored for one schedule must not be in the way of the other."""
    pipe = accelerated(SD3.build(), tmp_path, pipeline_options={"sigmas": SIGMAS})
    SD3.draw(pipe, sigmas=SIGMAS)
    SD3.draw(pipe)
    (note,) = notes(caplog)
    assert "other timesteps" in note
    assert misses(pipe) == 0
    soda_compile.restore(pipe)
    accelerated(pipe, tmp_path)
    SD3.draw(pipe)
    SD3.draw(pipe, sigmas=SIGMAS)
    assert notes(caplog) == []
    assert misses(pipe) == 0


@pytest.mark.thorough
def test_each_strength_has_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe, plain = (
        diffusers.StableDiffusion3Img2ImgPipeline(
            transformer=made.transformer, scheduler=made.scheduler, **{**NO_TEXT_3, "vae": vae()}
        )
        for made in (SD3.build(), SD3.build())
    )
    image = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    call = {"num_inference_steps": 10, "height": None, "width": None, "image": image}
    for each in (pipe, plain):
        each.set_progress_bar_config(disable=True)
    for strength in (0.6, 0.9):
        more = {"height": None, "width": None, "image": image, "strength": strength}
        accelerated(pipe, tmp_path, num_inference_steps=10, calibrate_with=inputs(SD3, **more), pipeline_options={})
        SD3.draw(pipe, strength=strength, **call)
        assert notes(caplog) == []
        assert misses(pipe) == 0
        if strength == 0.6:  # what was not measured before step 4 is computed
            found = SD3.draw(pipe, strength=1.0, **call)
            (note,) = notes(caplog)
            assert "strength=1 instead of 0.6" in note
            assert misses(pipe) == 0
            assert (found - SD3.draw(plain, strength=1.0, **call)).norm() < 0.3 * found.norm()
        soda_compile.restore(pipe)
    assert len(list(tmp_path.glob("[!.]*"))) == 2


@pytest.mark.thorough
def test_a_loop_that_begins_earlier_is_told_what_works(tmp_path: Path) -> None:
    """A loop of one's own says nothing of where it begins, so the same plan is found; the advice measures anew."""
    pipe = DIT.build()

    @torch.no_grad()
    def loop(first: int) -> None:
        pipe.scheduler.set_timesteps(8)
        sample = torch.ones(1, 4, 8, 8)
        for timestep in pipe.scheduler.timesteps[first:]:
            sample = pipe.scheduler.scale_model_input(sample, timestep)
            noise = pipe.transformer(sample, timestep=timestep.reshape(1), class_labels=torch.tensor([3])).sample
            sample = pipe.scheduler.step(noise[:, :4], timestep, sample).prev_sample

    options = {"speedup": 1.3, "cache": tmp_path, "on_miss": "error", "closest": 0}
    soda_compile.accelerate(pipe, calibrate_with=lambda seed: loop(4), **options)
    loop(4)
    with pytest.raises(TrajectoryError, match=r"starts at step 4; .*refresh=True"):
        loop(1)
    soda_compile.restore(pipe)
    soda_compile.accelerate(pipe, calibrate_with=lambda seed: loop(1), refresh=True, **options)
    loop(1)
    loop(4)
    assert len(list(tmp_path.glob("[!.]*"))) == 1


@pytest.mark.thorough
def test_a_stored_plan_that_does_not_fit_is_measured_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = accelerated(SD3.build(), tmp_path)
    soda_compile.restore(pipe)
    (path,) = tmp_path.glob("*/*.plan.json")
    text = json.loads(path.read_text())
    path.write_text(json.dumps({**text, "timesteps": [timestep / 2 for timestep in text["timesteps"]]}))
    accelerated(pipe, tmp_path, on_miss="error")
    assert "does not fit" in caplog.text
    (new,) = tmp_path.glob("*/*.plan.json")
    assert new != path
    SD3.draw(pipe)


@pytest.mark.thorough
def test_refresh_measures_whatever_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = accelerated(SD3.build(), tmp_path)
    (first,) = tmp_path.glob("*/*.safetensors")
    soda_compile.restore(pipe)
    accelerated(pipe, tmp_path)
    assert capsys.readouterr().err.count("measuring") == 1
    soda_compile.restore(pipe)
    accelerated(pipe, tmp_path, refresh=True)
    assert capsys.readouterr().err.count("measuring") == 1
    (second,) = tmp_path.glob("*/*.safetensors")
    assert second.name != first.name
    assert second.parent == first.parent, "in place of the first"


@pytest.mark.thorough
def test_without_anything_near_the_advice_measures(tmp_path: Path) -> None:
    pipe, plain = accelerated(SD3.build(), tmp_path), SD3.build()
    (setting,) = tmp_path.glob("*/setting.json")
    setting.unlink()
    close(SD3.draw(pipe, height=32, num_inference_steps=3), SD3.draw(plain, height=32, num_inference_steps=3))
    reason = stats(pipe)["transformer"]["reasons"]["outside"]
    assert "no plan is stored for StableDiffusion3Pipeline at 3 steps" in reason
    assert "the other arguments of this call in pipeline_options" in reason
    soda_compile.restore(pipe)
    accelerated(pipe, tmp_path, **advised(reason), pipeline_options={"height": 32}, on_miss="error")
    SD3.draw(pipe, height=32, num_inference_steps=3)


@pytest.mark.thorough
def test_generations_of_several_settings_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mixed = [*inputs(SD3, height=64), *inputs(SD3, height=32)]
    pipe = accelerated(SD3.build(), tmp_path, calibrate_with=mixed)
    assert "the generations to measure on differ: height=64 instead of 32" in caplog.text
    caplog.clear()
    SD3.draw(pipe)
    assert notes(caplog) == []


@pytest.mark.thorough
@pytest.mark.parametrize("stored", [True, False])
def test_a_function_is_found_again_by_what_it_passes(
    stored: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says nothing of its size, and nothing but its first generation tells; no step of that is run."""
    pipe, steps = SD3.build(), []

    def generate(seed: int) -> None:
        SD3.draw(pipe, seed, height=32, callback_on_step_end=lambda pipe, step, *_: steps.append(step) or {})

    options = {"calibrate_with": generate, "pipeline_options": {}, "num_inference_steps": None, "closest": 0}
    soda_compile.accelerate(pipe, speedup=1.5, cache=tmp_path, calibrate_with=generate, closest=0)
    soda_compile.restore(pipe)
    steps.clear()
    if stored:
        soda_compile.accelerate(pipe, speedup=1.5, cache=tmp_path, **options)
        assert "stored plan" in capsys.readouterr().err
        assert not steps
    else:  # of another size it is not
        soda_compile.accelerate(
            pipe, speedup=1.5, cache=tmp_path, calibrate_with=lambda seed: SD3.draw(pipe, seed), closest=0
        )
        assert "stored plan" not in capsys.readouterr().err
    assert len(list(tmp_path.glob("[!.]*"))) == 2 - stored


def test_what_is_verified_is_true_and_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe, plain = SD3.build(), SD3.build()
    one = inputs(SD3)[0]
    accelerated(pipe, tmp_path, calibrate_with=[one], verify=2)
    (path,) = tmp_path.glob("*/*.verified.json")
    told = json.loads(path.read_text())
    assert told["seeds"] == [1, 2], "not the one that was measured on"
    call = {**one, "height": 64, "width": 64, "num_inference_steps": STEPS}
    for seed, error in zip(told["seeds"], told["errors"], strict=True):
        found, original = (
            each(**call, generator=torch.Generator().manual_seed(seed), return_dict=False)[0] for each in (pipe, plain)
        )
        assert error == pytest.approx(float((found - original).norm() / original.norm()), rel=1e-3)
        assert error > 0
    shown = re.findall(r"verified: relative error ([\d.]+)% on average, ([\d.]+)% at worst", capsys.readouterr().err)
    assert len(shown) == 1
    assert float(shown[0][1]) == pytest.approx(100 * max(told["errors"]), abs=0.01)


def test_an_error_in_verifying_leaves_the_pipeline_as_it_was(tmp_path: Path) -> None:
    pipe = SD3.build()

    def generate(seed: int) -> None:
        if seed > 3:
            raise ValueError("no such seed")
        SD3.draw(pipe, seed)

    with pytest.raises(ValueError, match="no such seed"):
        soda_compile.accelerate(pipe, speedup=1.5, calibrate_with=generate, cache=tmp_path, verify=1, closest=0)
    soda_compile.accelerate(pipe, speedup=1.5, calibrate_with=generate, cache=tmp_path, closest=0)
    assert Plan.load(next(tmp_path.glob("*/*.plan.json"))).steps == STEPS
