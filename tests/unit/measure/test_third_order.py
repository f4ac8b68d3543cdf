"""The third-order forecast, from measured errors through a plan to compiled steps."""

from collections.abc import Iterator

import pytest
import torch
from eager_reference import EagerReference
from families import Region
from models.harness import compile_once, difference, generate
from plain_models import Listed, TimmBlock, inputs
from torch import nn
from tracing import eager_graphs

import soda_compile
from soda_compile.planner import AnchorSchedule, Unified
from soda_compile.plans.actions import Action
from soda_compile.plans.plan import Plan
from soda_compile.plans.sensitivity import Sensitivity

STEPS, INTERVAL = 10, 3
FORECAST3 = Action("forecast", 3)
REGIONS = {
    f"blocks.{index}.{name}": Region((f"blocks.{index}.{name}.{last}",))
    for index in range(3)
    for name, last in (("attn", "proj"), ("mlp", "fc2"))
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Listed(TimmBlock).eval()


@pytest.fixture(scope="module")
def sensitivity(model: nn.Module) -> Iterator[Sensitivity]:
    def run(seed: int) -> None:
        with torch.no_grad():
            for step in range(STEPS):
                model(**inputs(step, STEPS))

    with eager_graphs():
        yield soda_compile.calibrate(model, run, generations=1, max_interval=INTERVAL)


def test_it_is_the_best_on_a_smooth_trajectory(sensitivity: Sensitivity):
    for region in sensitivity.info.regions:
        errors = [
            sensitivity.error("relative", name, STEPS - 1, region, 1, 1)
            for name in ("reuse", "forecast1", "forecast2", "forecast3")
        ]
        assert errors == sorted(errors, reverse=True)
        assert errors[3] < errors[0] / 10


def test_it_is_planned_where_it_is_asked_for(sensitivity: Sensitivity):
    made = soda_compile.plan(sensitivity, anchors=7, strategy=AnchorSchedule("forecast3"))
    assert any(FORECAST3 in row for row in made.actions)
    assert Plan.from_json(made.to_json()) == made
    for options in ({"anchors": 7, "strategy": AnchorSchedule("auto")}, {"speedup": 1.3, "strategy": Unified()}):
        default = soda_compile.plan(sensitivity, **options)
        assert not any(FORECAST3 in row for row in default.actions)


def test_what_is_compiled_is_what_the_plan_says(model: nn.Module, sensitivity: Sensitivity):
    made = soda_compile.plan(sensitivity, anchors=7, strategy=AnchorSchedule("forecast3"))
    assert any(FORECAST3 in row for row in made.actions)
    steps = [inputs(step, STEPS) for step in range(STEPS)]
    expected = EagerReference(model, REGIONS, made).run(steps)
    board, compiled, reason = compile_once(model, steps[0])
    assert reason == ""
    board.install(made)
    assert difference(generate(compiled, steps), expected) <= 1e-5
    assert difference(generate(model, steps), expected) > 1e-6, "the plan must show"
