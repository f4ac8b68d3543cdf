"""One measurement at twelve steps serves other numbers of steps and another scheduler. No Inductor here."""

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from pipelines import PIPELINES, TinyPipeline, close

import soda_compile
from soda_compile.errors import PlanError
from soda_compile.plans.sensitivity import Sensitivity

MEASURED = 12


pytestmark = pytest.mark.usefixtures("eager")


def calibrated(tiny: TinyPipeline) -> tuple[Any, Sensitivity]:
    pipe = tiny.build()

    def generate(seed: int) -> None:
        tiny.draw(pipe, seed, num_inference_steps=MEASURED)

    return pipe, soda_compile.calibrate(pipe, generate, generations=1, max_interval=8)


def draw_under(tiny: TinyPipeline, pipe: Any, plan: soda_compile.Plan) -> torch.Tensor:
    """Accelerated samples, of a generation whose every call followed the plan; it computes what plain hooks do."""
    steps = plan.steps
    expected = tiny.draw_by_hooks(pipe, plan, num_inference_steps=steps)
    soda_compile.accelerate(pipe, plan, on_miss="error")
    before = soda_compile.stats(pipe)["transformer"]["calls"]
    samples = tiny.draw(pipe, num_inference_steps=steps)
    counted = soda_compile.stats(pipe)["transformer"]
    assert (counted["calls"] - before, counted["misses"]) == (steps * plan.calls_per_step, {})
    soda_compile.restore(pipe)
    close(samples, expected)
    return samples


def test_other_steps_and_another_scheduler(tmp_path) -> None:
    dit = PIPELINES["dit"]
    pipe, sensitivity = calibrated(dit)
    assert sensitivity.info.noise_levels == tuple(sorted(sensitivity.info.noise_levels or (), reverse=True))
    sensitivity.save(tmp_path / "measured.safetensors")
    sensitivity = Sensitivity.load(tmp_path / "measured.safetensors")
    for steps in (8, 20):
        plan = soda_compile.plan(sensitivity, speedup=1.5, steps=steps)
        assert dict(plan.method)["derived_from"] == "12 steps of DDIMScheduler"
        assert any(action.kind != "compute" for row in plan.actions for action in row)
        draw_under(dit, pipe, plan)
    euler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    plan = soda_compile.plan(sensitivity, speedup=1.5, steps=10, scheduler=euler)
    with pytest.raises(PlanError, match="the plan was made for EulerDiscreteScheduler"):
        soda_compile.accelerate(pipe, plan)
    pipe.scheduler = euler
    draw_under(dit, pipe, plan)


@pytest.mark.thorough
def test_flow_matching() -> None:
    sd3 = PIPELINES["sd3"]
    pipe, sensitivity = calibrated(sd3)
    assert sensitivity.info.noise_levels == pytest.approx([value / 1000 for value in sensitivity.info.timesteps or ()])
    for steps in (8, 20):
        draw_under(sd3, pipe, soda_compile.plan(sensitivity, speedup=1.5, steps=steps))
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.5)
    draw_under(sd3, pipe, soda_compile.plan(sensitivity, anchors=7, steps=10, scheduler=pipe.scheduler))
