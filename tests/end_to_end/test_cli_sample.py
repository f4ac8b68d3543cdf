"""``soda-compile sample`` and ``calibrate``: pictures without a plan and with it, of a target and of a folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner, Result

pytest.importorskip("diffusers")

from tracing import graphs_as_they_are

import soda_compile
from soda_compile.acceleration.measurement_folder import MeasurementFolder
from soda_compile.acceleration.pictures import as_image, psnr_db, relative_error
from soda_compile.acceleration.sampling import sample_both
from soda_compile.cli import app
from soda_compile.cli.pipeline_target import load_pipeline
from soda_compile.digits.example import pipeline
from soda_compile.plans.plan import Plan, compute_all_plan

TARGET, STEPS = "soda_compile.digits.example:pipeline", 6


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs_as_they_are(monkeypatch)
    monkeypatch.setenv("SODA_COMPILE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Computes everything."""
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    names = tuple(f"transformer_blocks.{layer}.{name}" for layer in range(6) for name in ("attn1", "ff"))
    compute_all_plan(names, STEPS).save(path)
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["sample", *map(str, arguments)])


@pytest.mark.thorough
def test_a_plan_that_computes_everything_changes_nothing(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--plan", plan, "--seeds", 2, "--first-seed", 5, "--set", f"num_inference_steps={STEPS}", "--out", out)
    result = invoke(TARGET, *arguments, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["samples"]
    assert [each["seed"] for each in found] == [5, 6]
    assert all(each["relative_error"] < 1e-4 for each in found)
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png")) == [
        "accelerated/5.png", "accelerated/6.png", "original/5.png", "original/6.png",
    ]  # fmt: skip
    assert np.array_equal(imread(out / "original" / "5.png"), imread(out / "accelerated" / "5.png"))
    assert not np.array_equal(imread(out / "original" / "5.png"), imread(out / "original" / "6.png"))


@pytest.mark.thorough
def test_a_speedup_is_measured_and_the_pipeline_left_as_it_was(tmp_path: Path) -> None:
    pipe, call = pipeline()
    call = {**call, "num_inference_steps": STEPS}
    options = {"speedup": 1.3, "num_inference_steps": STEPS, "calibrate_with": 1, "closest": 0}
    (found,) = sample_both(pipe, call, [3], options)
    assert 1e-4 < relative_error(found.original, found.accelerated) < 0.5
    assert soda_compile.stats(pipe)["transformer"]["regions"]["forecast"] > 0
    assert pipe.transformer._compiled_call_impl is None
    soda_compile.accelerate(pipe, Plan.load(next((tmp_path / "cache").rglob("*.plan.json"))))  # it is free


def test_a_folder_is_a_pipeline(tmp_path: Path) -> None:
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    unet = UNet2DModel(8, 1, 1, block_out_channels=(4,), norm_num_groups=2, down_block_types=("DownBlock2D",),
                       up_block_types=("UpBlock2D",), layers_per_block=1)  # fmt: skip
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path / "saved")
    pipe, call = load_pipeline(str(tmp_path / "saved"))
    assert type(pipe).__name__ == "DDIMPipeline"
    assert call == {}


@pytest.mark.thorough
def test_a_measurement_is_a_folder_that_sample_takes(tmp_path: Path) -> None:
    settings = ("--set", f"num_inference_steps={STEPS}", "--set", "class_labels=[7]")
    measured = tmp_path / "measured"
    made = CliRunner().invoke(
        app,
        ["calibrate", TARGET, "--out", str(measured), "--generations", "1", "--speedup", "1.3", *settings, "--json"],
    )
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["measurement"]["steps"] == STEPS
    assert {"setting.json", "README.md"} <= {path.name for path in measured.iterdir()}
    cache = MeasurementFolder(measured).measurement()
    assert cache is not None
    assert cache.setting.steps == STEPS
    out = tmp_path / "out"
    drawn = invoke(TARGET, "--speedup", 1.3, "--measurement", measured, "--seeds", 1, *settings, "--out", out)
    assert drawn.exit_code == 0, drawn.output
    assert "measuring" not in drawn.output
    assert "torch.compile" in drawn.output
    shown = ["report", str(measured), "--out", str(tmp_path / "r.png"), "--original", str(out / "original")]
    assert CliRunner().invoke(app, [*shown, "--accelerated", str(out / "accelerated")]).exit_code == 0


def test_pictures_of_every_kind() -> None:
    grey = np.full((2, 2), 51, dtype=np.uint8)
    assert np.allclose(as_image(grey), 0.2)
    assert as_image(np.zeros((2, 2, 4))).shape == as_image(np.zeros((2, 2, 1))).shape == (2, 2, 3)
    with pytest.raises(ValueError, match="shape"):
        as_image(np.zeros((4, 2, 2)))
    assert psnr_db(as_image(grey), as_image(grey)) == np.inf
    assert psnr_db(as_image(grey), as_image(grey) + 0.1) == pytest.approx(20)
    assert relative_error(as_image(grey), as_image(grey) + 0.1) == pytest.approx(0.5)


def test_what_is_refused(plan: Path, tmp_path: Path) -> None:
    refused = {
        "give either --speedup or --plan": (TARGET,),
        "give it with --speedup": (TARGET, "--plan", plan, "--measurement", "owner/name"),
        "write it as name=value": (TARGET, "--plan", plan, "--set", "steps"),
        "there is no model_index.json": (tmp_path, "--plan", plan),
        "must return a diffusers pipeline": ("soda_compile.digits.example:example", "--plan", plan),
    }
    for expected, arguments in refused.items():
        result = invoke(*arguments)
        assert result.exit_code != 0
        assert expected in " ".join(result.output.split()), result.output
