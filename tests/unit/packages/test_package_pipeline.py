"""A package in a diffusers pipeline, in place of its transformer; its subgraphs run in eager mode here."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from diffusers import DPMSolverMultistepScheduler
from eager_reference import EagerReference
from families import Region

import soda_compile
from soda_compile.digits.pipeline import DigitsPipeline, load
from soda_compile.integrations.diffusers.scheduler_hook import scheduler_digest
from soda_compile.plans.plan import Plan

STEPS, LABELS = 4, [3, 7]
ROUNDING = {"rtol": 1e-3, "atol": 1e-4}


def draw(pipe: DigitsPipeline, seed: int = 0, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    options = {"num_inference_steps": STEPS, **options}
    images: Tensor = pipe(LABELS, generator=generator, output_type="latent", **options).images
    return images


@pytest.fixture(scope="module")
def package(eager_subgraphs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Computes everything at the first two steps, and reuses at the others."""
    pipe = load()
    pipe.scheduler.set_timesteps(STEPS)
    example = {
        "hidden_states": torch.randn(4, 1, 8, 8),
        "timestep": torch.tensor([500, 500, 500, 500]),
        "class_labels": torch.tensor([3, 7, 10, 10]),
    }
    regions = tuple(f"transformer_blocks.{layer}.{name}" for layer in range(6) for name in ("attn1", "ff"))
    reuse = soda_compile.Action("reuse")
    row = (soda_compile.Action("compute"), soda_compile.Action("compute"), reuse, reuse)
    plan = Plan(
        "",
        regions,
        (row,) * len(regions),
        timesteps=tuple(map(float, pipe.scheduler.timesteps)),
        timestep_input="timestep",
        scheduler=type(pipe.scheduler).__name__,
        scheduler_digest=scheduler_digest(pipe.scheduler),
    )
    path = tmp_path_factory.mktemp("digits") / "digits.soda.pt2"
    return soda_compile.export(pipe.transformer, example, plan=plan, path=path)


@pytest.fixture
def installed(package: Path) -> DigitsPipeline:
    pipe: DigitsPipeline = soda_compile.install(load(), soda_compile.load(package))
    return pipe


@pytest.fixture(scope="module")
def clean(package: Path) -> Tensor:
    return draw(soda_compile.install(load(), soda_compile.load(package)))


def test_it_does_what_hooks_do(package: Path, clean: Tensor) -> None:
    pipe = load()
    plan = soda_compile.load(package).plan
    regions = {name: Region((f"{name}.{'to_out.0' if 'attn' in name else 'net.2'}",)) for name in plan.regions}
    reference = EagerReference(pipe.transformer, regions, plan)
    steps, forward = iter(range(STEPS)), pipe.transformer.forward

    def planned(*arguments: Any, **options: Any) -> Any:
        with reference.step(next(steps)):
            return forward(*arguments, **options)

    pipe.transformer.forward = planned
    torch.testing.assert_close(clean, draw(pipe), **ROUNDING)
    assert (clean - draw(load())).abs().max() > 1e-2


def test_assigning_it_is_enough(package: Path, clean: Tensor) -> None:
    pipe = load()
    pipe.transformer = soda_compile.load(package)
    assert torch.equal(draw(pipe), clean)
    assert torch.equal(draw(pipe), clean)
    made = DigitsPipeline(transformer=soda_compile.load(package), scheduler=load().scheduler)
    made.set_progress_bar_config(disable=True)
    assert torch.equal(draw(made.to("cpu")), clean)


@pytest.mark.parametrize("last", [0, 2])
def test_an_interrupted_generation_leaves_nothing(installed: DigitsPipeline, clean: Tensor, last: int) -> None:
    def interrupt(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == last:
            raise KeyboardInterrupt
        return values

    with suppress(KeyboardInterrupt):
        draw(installed, seed=1, callback_on_step_end=interrupt)
    assert torch.equal(draw(installed), clean)


def test_other_settings_are_refused_before_the_denoiser_runs(installed: DigitsPipeline, clean: Tensor) -> None:
    with pytest.raises(soda_compile.PlanError, match=f"the plan is for {STEPS} steps, the pipeline runs 6"):
        draw(installed, num_inference_steps=6)
    with pytest.raises(soda_compile.PackageError, match=r"hidden_states is float32\[2, 1, 8, 8\]"):
        draw(installed, guidance_scale=1.0)
    assert torch.equal(draw(installed), clean)


def test_another_scheduler_is_refused(package: Path) -> None:
    pipe = load()
    before, pipe.scheduler = pipe.transformer, DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(soda_compile.PlanError, match="made for DDIMScheduler"):
        soda_compile.install(pipe, soda_compile.load(package))
    assert pipe.transformer is before
    with pytest.raises(soda_compile.OptionError, match="has no prior"):
        soda_compile.install(pipe, soda_compile.load(package), "prior")


def test_restoring_gives_back_the_original(package: Path) -> None:
    pipe = load()
    original, transformer = draw(pipe), pipe.transformer
    before = set(vars(pipe.scheduler))
    soda_compile.install(pipe, soda_compile.load(package))
    with pytest.raises(soda_compile.OptionError, match="accelerated already"):
        soda_compile.install(pipe, soda_compile.load(package))
    assert soda_compile.restore(pipe) is pipe
    assert pipe.transformer is transformer
    assert set(vars(pipe.scheduler)) == before
    assert torch.equal(draw(pipe), original)
