"""The one line: what is stored and found, and what is refused before the first step. No Inductor here."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

import diffusers
from diffusers.hooks import PyramidAttentionBroadcastConfig
from pipelines import NO_TEXT_3, PIPELINES, STEPS, attributes, close, same, samples, sd3_plan
from pipelines import SMALL_SD3 as SD3
from random_plans import random_plan

import soda_compile
from soda_compile.digits.pipeline import load as load_digits
from soda_compile.errors import OptionError, PlanError
from soda_compile.plans.plan import Plan

DIT, FLUX = PIPELINES["dit"], PIPELINES["flux"]


pytestmark = pytest.mark.usefixtures("eager")


# One line


def test_one_line_measures_once_and_finds_the_plan_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SODA_COMPILE_CACHE", str(tmp_path / "cache"))
    pipe = SD3.build()
    original = SD3.draw(pipe)
    before = attributes(pipe, "transformer")
    options = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "calibrate_with": samples(SD3), "closest": 0}
    assert soda_compile.accelerate(pipe, speedup=1.5, **options) is pipe
    fast = SD3.draw(pipe, guidance_scale=5.0)
    (folder,) = (tmp_path / "cache").glob("[!.]*")
    assert "measuring StableDiffusion3Pipeline" in (told := capsys.readouterr().err)
    assert folder.name in told
    soda_compile.restore(pipe)
    assert attributes(pipe, "transformer") == before
    same(SD3.draw(pipe), original)

    def never(seed: int) -> None:
        raise AssertionError("measured again")

    again = SD3.build()  # another process would build the same
    soda_compile.accelerate(again, speedup=1.5, **options)
    told = capsys.readouterr().err
    assert f"stored plan for {STEPS} steps" in told
    assert "measuring" not in told
    assert soda_compile.stats(again)["transformer"]["calls"] == 0
    same(SD3.draw(again, guidance_scale=5.0), fast)
    soda_compile.restore(again)
    # What cannot even begin leaves what is stored in place.
    soda_compile.accelerate(again, speedup=1.5, on_miss="error", **{**options, "calibrate_with": never})
    assert "nothing is measured now" in caplog.text
    same(SD3.draw(again, guidance_scale=5.0), fast)
    shutil.rmtree(folder)
    with pytest.raises(PlanError, match=r"no plan is stored for StableDiffusion3Pipeline at 4 steps.*=4"):
        SD3.draw(again, num_inference_steps=4, guidance_scale=5.0)


def never(seed: int) -> None:
    raise AssertionError("measured again")


@pytest.mark.thorough
def test_steps_too_far_apart_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for steps in (8, 4):
        pipe = load_digits()
        soda_compile.accelerate(
            pipe, speedup=1.3, num_inference_steps=steps, calibrate_with=1, max_interval=2, cache=tmp_path, closest=0
        )
        told = [record.getMessage() for record in caplog.records if "hardly anything to gain" in record.getMessage()]
        assert len(told) == (steps == 4)
    assert "the modules of pipe.transformer are" in told[0]
    assert "at each of its 4 steps" in told[0]


@pytest.mark.parametrize(
    ("anchors", "longest", "steps"),
    [
        (1, 12, {"num_inference_steps": 13}),
        (4, 10, {"num_inference_steps": 13}),
        (1, 12, {"pipeline_options": {"num_inference_steps": 13}}),
        (1, 12, {"calibrate_with": [{"class_labels": [3], "num_inference_steps": 13}]}),
        (1, 12, {}),  # a function says it
    ],
)
def test_values_are_measured_as_long_as_the_plan_may_keep_them(
    tmp_path: Path, anchors: int, longest: int, steps: dict[str, Any]
) -> None:
    pipe = DIT.build()

    def generate(seed: int) -> object:
        return DIT.draw(pipe, seed, num_inference_steps=13)

    options = {"calibrate_with": [[3]] if steps else generate, "cache": tmp_path, "closest": 0}
    soda_compile.accelerate(pipe, anchors=anchors, **{**options, **steps})
    [table] = tmp_path.rglob("*.safetensors")
    assert soda_compile.Sensitivity.load(table).info.max_interval == longest


@pytest.mark.parametrize("steps", [6, 13])
def test_what_is_measured_later_reaches_as_far_as_its_own_steps_need(tmp_path: Path, steps: int) -> None:
    pipe = DIT.build()
    options = {"num_inference_steps": 4, "calibrate_with": [[3]], "cache": tmp_path, "closest": 0}
    soda_compile.accelerate(pipe, anchors=1, on_miss="measure", **options)
    DIT.draw(pipe, num_inference_steps=steps)
    measured = map(soda_compile.Sensitivity.load, tmp_path.rglob("*.safetensors"))
    assert {each.info.steps: each.info.max_interval for each in measured} == {4: 10, steps: max(10, steps - 1)}


@pytest.mark.thorough
def test_another_step_count_takes_another_stored_plan(tmp_path: Path) -> None:
    pipe, expected = DIT.build(), {}
    for steps in (4, 6):
        options = {"num_inference_steps": steps, "calibrate_with": [[3]], "cache": tmp_path, "closest": 0}
        soda_compile.accelerate(pipe, anchors=2, **options)
        expected[steps] = DIT.draw(pipe, num_inference_steps=steps)
        if steps == 4:
            soda_compile.restore(pipe)
    for steps in (4, 6, 4):
        same(DIT.draw(pipe, num_inference_steps=steps), expected[steps])


@pytest.mark.thorough
def test_a_damaged_store_is_measured_again(tmp_path: Path) -> None:
    options = {"num_inference_steps": 3, "calibrate_with": [[3]], "cache": tmp_path, "anchors": 2, "closest": 0}
    pipe = soda_compile.accelerate(DIT.build(), **options)
    (table,) = tmp_path.glob("*/*.safetensors")
    (plan,) = tmp_path.glob("*/*.plan.json")
    table.write_bytes(table.read_bytes()[:100])
    plan.write_text("{")
    soda_compile.restore(pipe)
    soda_compile.accelerate(pipe, **options)
    ((table,), (plan,)) = (tuple(tmp_path.glob(f"*/*.{ending}")) for ending in ("safetensors", "plan.json"))
    assert soda_compile.Sensitivity.load(table).info.steps == 3
    assert Plan.load(plan).steps == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of plan, speedup=None and anchors=None"),
        ({"speedup": 2.0, "anchors": 3}, r"exactly one of plan, speedup=2\.0 and anchors=3"),
        ({"speedup": 2.0, "calibrate_with": []}, "at least one prompt"),
        ({"speedup": 2.0, "calibrate_with": 0}, "at least 1 generation"),
        ({"speedup": 2.0, "pipeline_options": {"hight": 64}}, "takes no argument 'hight'"),
        ({"speedup": 2.0, "mode": "fastest"}, "'fastest' is not one of"),
        ({"speedup": 2.0, "verify": -1}, "verify is -1"),
        ({"speedup": 2.0, "measurement": "a/b", "refresh": True}, "give one of them"),
        ({"speedup": 2.0, "closest": -1}, "closest is -1"),
        ({"speedup": 2.0, "measurement": "a/b", "closest": 4}, "give one of them"),
        ({"plan": sd3_plan(), "closest": 4}, "closest needs something to plan for"),
        ({"speedup": 2.0, "measurement": "nowhere"}, "'nowhere' is no folder"),
        ({"plan": sd3_plan(), "refresh": True}, "refresh needs something to plan for"),
        ({"plan": sd3_plan(), "verify": 2}, "verify needs something to plan for"),
        ({"plan": sd3_plan(), "measurement": "a/b"}, "measurement needs something to plan for"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    pipe = SD3.build()
    with pytest.raises(OptionError, match=message):
        soda_compile.accelerate(pipe, cache=tmp_path, **options)
    assert "forward" not in vars(pipe.transformer)


# What cannot work says so before the first step


def compile_it(pipe: Any) -> None:
    pipe.transformer.compile()


def compile_blocks(pipe: Any) -> None:
    pipe.transformer.transformer_blocks[0].compile()


def cache_it(pipe: Any) -> None:
    pipe.transformer.enable_cache(
        PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500)
    )


def offload_sequentially(pipe: Any) -> None:
    pipe.enable_sequential_cpu_offload(device="cpu")


def replace_forward(pipe: Any) -> None:
    pipe.transformer.forward = lambda *arguments, **options: None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (compile_it, "compiled already"),
        (compile_blocks, "compiled already"),
        (cache_it, r"call pipe\.transformer\.disable_cache\(\) first"),
        (offload_sequentially, "device meta.*enable_model_cpu_offload"),
        (replace_forward, "replaced already"),
    ],
)
def test_what_cannot_be_accelerated_is_refused_and_left_alone(change: Callable[[Any], None], message: str) -> None:
    pipe = FLUX.build()
    change(pipe)
    before = attributes(pipe, "transformer")
    with pytest.raises(OptionError, match=message):
        soda_compile.accelerate(pipe, random_plan(3, tuple(FLUX.regions), STEPS))
    assert attributes(pipe, "transformer") == before


def test_a_replaced_scheduler_or_denoiser_is_noticed() -> None:
    pipe = SD3.build()
    original = SD3.draw(pipe)
    soda_compile.accelerate(pipe, sd3_plan())
    tied, pipe.scheduler = pipe.scheduler, diffusers.FlowMatchEulerDiscreteScheduler()
    close(SD3.draw(pipe), original)
    assert "accelerate the pipeline that calls it" in soda_compile.stats(pipe)["transformer"]["reasons"]["outside"]
    pipe.scheduler, model = tied, pipe.transformer
    pipe.transformer = SD3.denoiser()
    with pytest.raises(OptionError, match=r"pipe\.transformer was replaced after accelerate"):
        SD3.draw(pipe)
    pipe.transformer = model
    with pytest.raises(OptionError, match="is tied already"):
        soda_compile.accelerate(
            diffusers.StableDiffusion3Pipeline(transformer=SD3.denoiser(), scheduler=tied, **NO_TEXT_3), sd3_plan()
        )
    soda_compile.restore(pipe)
    same(SD3.draw(pipe), original)
