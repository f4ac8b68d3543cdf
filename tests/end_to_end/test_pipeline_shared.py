"""A measurement that is saved by one pipeline and used by another: from a folder, and from the hub."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from hub import Hub
from pipelines import PIPELINES, STEPS, same, samples
from pipelines import SMALL_SD3 as SD3
from tracing import eager_graphs

import soda_compile
from soda_compile import stats
from soda_compile.errors import OptionError, PlanError, SensitivityError
from soda_compile.plans.plan import Plan, compute_all_plan
from soda_compile.plans.sensitivity import Sensitivity

pytestmark = pytest.mark.usefixtures("eager")


def never(seed: int) -> None:
    raise AssertionError("measured")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A measurement of ``SMALL_SD3``, verified, and a sample by its plan."""
    folder = tmp_path_factory.mktemp("shared")
    with eager_graphs():
        pipe = SD3.build()
        pipe.register_to_config(_name_or_path="owner/small-sd3")
        options = {
            "num_inference_steps": STEPS,
            "calibrate_with": samples(SD3),
            "cache": folder / "cache",
            "closest": 0,
        }
        soda_compile.accelerate(pipe, speedup=1.5, verify=2, **options)
        assert soda_compile.save_measurement(pipe, folder / "saved") == folder / "saved"
        return folder / "saved", SD3.draw(pipe)


def with_it(place: Any, tmp_path: Path, pipe: Any = None, **options: Any) -> Any:
    options = {"speedup": 1.5, "calibrate_with": never, "cache": tmp_path / "cache", **options}
    return soda_compile.accelerate(SD3.build() if pipe is None else pipe, measurement=place, **options)


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("soda_compile")]


def test_a_saved_measurement_serves_without_measuring(
    saved: tuple[Path, torch.Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, fast = saved
    pipe = with_it(folder, tmp_path, on_miss="error")
    same(SD3.draw(pipe), fast)
    assert notes(caplog) == []
    assert not (tmp_path / "cache").exists(), "it is used where it lies"
    # Another goal is planned from the same tables.
    soda_compile.restore(pipe)
    with_it(folder, tmp_path, pipe, speedup=1.2)
    assert (SD3.draw(pipe) - fast).abs().max() > 1e-6


def test_the_folder_holds_tables_plans_setting_and_card(saved: tuple[Path, torch.Tensor]) -> None:
    folder, _ = saved
    setting = json.loads((folder / "setting.json").read_text())
    (table,), (plan,) = folder.glob("*.sensitivity.safetensors"), folder.glob("*.plan.json")
    assert Sensitivity.load(table).info.guidance == setting["call"]["guidance_scale"] == 7.0
    made = Plan.load(plan)
    assert made.steps == STEPS
    card = (folder / "README.md").read_text()
    front = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert front is not None
    yaml = pytest.importorskip("yaml")
    read = yaml.safe_load(front[1])
    assert read["base_model"] == setting["model"] == "owner/small-sd3"
    assert "soda-compile" in read["tags"]
    assert f"| steps | {STEPS} |" in card
    assert "| height | 64 |" in card
    assert f"{made.flop_ratio:.1%}" in card
    (verified,) = folder.glob("*.verified.json")
    errors = json.loads(verified.read_text())["errors"]
    assert f"| {sum(errors) / 2:.2%} | {max(errors):.2%} | 1, 2 |" in card
    assert str(folder.parent) not in card + json.dumps(setting), "nothing of the machine"
    pytest.importorskip("matplotlib")
    assert "](plan.png)" in card
    assert (folder / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_card_has_no_picture(
    saved: tuple[Path, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = with_it(saved[0], tmp_path)
    monkeypatch.delitem(sys.modules, "soda_compile.plans.plan_figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    again = soda_compile.save_measurement(pipe, tmp_path / "again")
    assert not (again / "plan.png").exists()
    assert "plan.png" not in (again / "README.md").read_text()


@pytest.mark.thorough
def test_what_is_saved_again_replaces_what_was_there(saved: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    place = tmp_path / "mine"
    pipe = soda_compile.accelerate(
        SD3.build(),
        speedup=1.5,
        num_inference_steps=4,
        calibrate_with=samples(SD3),
        cache=tmp_path / "cache",
        closest=0,
    )
    soda_compile.save_measurement(pipe, place)
    soda_compile.restore(pipe)
    soda_compile.save_measurement(with_it(saved[0], tmp_path, pipe), place)
    (table,) = place.glob("*.safetensors")
    assert Sensitivity.load(table).info.steps == STEPS
    assert len(list(place.glob("*.plan.json"))) == 1
    other = tmp_path / "other"
    other.mkdir()
    (other / "README.md").write_text("mine")
    with pytest.raises(OptionError, match="holds other files"):
        soda_compile.save_measurement(pipe, other)
    assert (other / "README.md").read_text() == "mine"
    soda_compile.restore(pipe)
    soda_compile.accelerate(pipe, compute_all_plan(tuple(SD3.regions), STEPS))
    with pytest.raises(OptionError, match="follows no measurement"):
        soda_compile.save_measurement(pipe, tmp_path / "new")


@pytest.mark.thorough
def test_other_weights_are_served_with_a_note_and_another_architecture_is_refused(
    saved: tuple[Path, torch.Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = saved
    tuned = SD3.build()
    with torch.no_grad():
        for parameter in tuned.transformer.parameters():
            parameter.mul_(1.01)
    pipe = with_it(folder, tmp_path, tuned)
    assert "is of other weights of pipe.transformer (a LoRA, a fine-tune, another dtype?)" in caplog.text
    SD3.draw(pipe)
    assert len(notes(caplog)) == 1, "told once"
    assert stats(pipe)["transformer"]["misses"] == {}
    peft = pytest.importorskip("peft")
    adapted = SD3.build()
    adapted.transformer.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q"], init_lora_weights=False))
    pipe = with_it(folder, tmp_path, adapted, on_miss="error")
    SD3.draw(pipe)
    assert stats(pipe)["transformer"]["calls"] == STEPS
    for name in ("flux", "dit"):
        other = PIPELINES[name].build()
        with pytest.raises(OptionError, match=r"of another architecture than pipe\.transformer.*owner/small-sd3"):
            with_it(folder, tmp_path, other)
        assert "forward" not in vars(other.transformer)


@pytest.mark.thorough
def test_another_setting_is_noted_and_derived(
    saved: tuple[Path, torch.Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = with_it(saved[0], tmp_path)
    SD3.draw(pipe, num_inference_steps=8, height=32)
    (note,) = notes(caplog)
    assert "height=32 instead of 64" in note
    assert f"8 steps instead of {STEPS}" in note
    assert "the tables of pipe.transformer are derived" in note
    assert stats(pipe)["transformer"]["misses"] == {}
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()  # not the one that is tied
    soda_compile.restore(pipe)
    shifted = SD3.build()
    shifted.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    caplog.clear()
    SD3.draw(with_it(saved[0], tmp_path, shifted))
    (note,) = notes(caplog)
    assert "the scheduler is FlowMatchEulerDiscreteScheduler" in note


@pytest.mark.thorough
def test_what_is_measured_meanwhile_serves_its_own_setting(saved: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    inputs = SD3.inputs(torch.Generator().manual_seed(7), 1)
    pipe = with_it(saved[0], tmp_path, on_miss="measure", calibrate_with=[inputs])
    SD3.draw(pipe)
    assert stats(pipe)["transformer"]["misses"] == {}
    SD3.draw(pipe, guidance_scale=3.0)
    assert set(stats(pipe)["transformer"]["misses"]) == {"measured"}
    SD3.draw(pipe, guidance_scale=3.0)
    assert stats(pipe)["transformer"]["calls"] == 2 * STEPS


def test_what_cannot_be_used_is_named(saved: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="holds no measurement that can be read"):
        with_it(tmp_path, tmp_path)
    with pytest.raises((PlanError, SensitivityError)):
        with_it(saved[0], tmp_path, speedup=1e6)


def test_verifying_runs_the_users_generations(
    saved: tuple[Path, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = with_it(saved[0], tmp_path, calibrate_with=samples(SD3), verify=1, num_inference_steps=STEPS)
    assert "verified: relative error" in capsys.readouterr().err
    again = soda_compile.save_measurement(pipe, tmp_path / "again")
    assert len(list(again.glob("*.verified.json"))) == 1


@pytest.mark.thorough
def test_a_repository_of_the_hub_serves_and_then_without_the_hub(
    saved: tuple[Path, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    folder, fast = saved
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with Hub().serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        hub.push("owner/sd3-5-steps", {path.name: path.read_bytes() for path in folder.iterdir()}, "v1")
        hub.push("owner/sd3-5-steps", {"README.md": b"taken back"})
        same(SD3.draw(with_it("owner/sd3-5-steps@v1", tmp_path)), fast)
        with pytest.raises(OptionError, match="holds no measurement"):
            with_it("owner/sd3-5-steps", tmp_path)
        with pytest.raises(OptionError, match="the hub gives none for the repository owner/nothing"):
            with_it("owner/nothing", tmp_path)
    same(SD3.draw(with_it("owner/sd3-5-steps@v1", tmp_path)), fast)
