"""Where a plan lies in the timesteps of a noise scheduler."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from soda_compile.errors import PlanError
from soda_compile.integrations.diffusers.schedule_fit import first_step
from soda_compile.plans.actions import COMPUTE
from soda_compile.plans.plan import Plan


def plan_of(timesteps: list[float] | None, steps: int = 0, **method: int) -> Plan:
    steps = len(timesteps) if timesteps else steps
    return Plan("", ("a",), ((COMPUTE,) * steps,), timesteps=timesteps, method=method)


def scheduler_of(timesteps: list[float], **config: Any) -> Any:
    return SimpleNamespace(timesteps=torch.tensor(timesteps), config=config)


SCHEDULE = scheduler_of([900.0, 700.0, 500.0, 300.0])
SHIFTED = scheduler_of([950.0, 800.0, 600.0, 200.0], use_dynamic_shifting=True)


@pytest.mark.parametrize(
    ("plan", "scheduler", "first"),
    [
        (plan_of([900, 700, 500, 300]), SCHEDULE, 0),
        (plan_of(None, 4), SCHEDULE, 0),
        (plan_of([900, 700]), SCHEDULE, 0),
        (plan_of([500, 300]), SCHEDULE, 2),
        (plan_of([900, 700, 500, 300]), SHIFTED, 0),  # another resolution shifts the timesteps
        (plan_of([500, 300], first_step=2, schedule_steps=4), SHIFTED, 2),
    ],
)
def test_fits(plan: Plan, scheduler: Any, first: int) -> None:
    assert first_step(plan, scheduler) == first


@pytest.mark.parametrize(
    ("plan", "scheduler", "message"),
    [
        (plan_of(None, 3), SCHEDULE, "the plan is for 3 steps, the pipeline runs 4"),
        (plan_of([900, 500]), SCHEDULE, "the plan is for 2 steps, the pipeline runs 4"),
        (plan_of([900, 800, 700, 500, 300]), SCHEDULE, "the plan is for 5 steps, the pipeline runs 4"),
        (plan_of([900, 700, 500, 310]), SCHEDULE, "timestep 310 at step 3, the scheduler 300"),
        (plan_of([500, 300]), SHIFTED, "the plan is for 2 steps, the pipeline runs 4"),
    ],
)
def test_does_not_fit(plan: Plan, scheduler: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        first_step(plan, scheduler)
