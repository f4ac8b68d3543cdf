"""The place of a plan in the noise scheduler's timesteps, or the reason why it has none."""

from typing import Any

from soda_compile.errors import PlanError
from soda_compile.integrations.diffusers.scheduler_hook import scheduler_digest, timesteps_of
from soda_compile.plans.plan import Plan


def require_scheduler(plan: Plan, scheduler: Any) -> None:
    """Check that a plan was made for this scheduler.

    Raises:
        PlanError: It was not.
    """
    if plan.scheduler_digest is not None and plan.scheduler_digest != scheduler_digest(scheduler):
        raise PlanError(
            f"the plan was made for {plan.scheduler} with configuration {plan.scheduler_digest}, this pipeline has "
            f"{type(scheduler).__name__} with {scheduler_digest(scheduler)}; calibrate with this scheduler"
        )


def first_step(plan: Plan, scheduler: Any) -> int:
    """Return the index in ``scheduler.timesteps`` of the plan's step 0.

    A plan of as many steps as the schedule covers all of it. A shorter one, such as that of a second-stage denoiser,
    lies where its timesteps are. Where the timesteps depend on the resolution (dynamic shifting), they may differ
    from the plan's, and only the numbers of steps count.

    Raises:
        PlanError: The plan does not fit the schedule.
    """
    timesteps = timesteps_of(scheduler)
    recorded = dict(plan.method)
    if getattr(scheduler, "config", {}).get("use_dynamic_shifting", False):
        if recorded.get("schedule_steps", plan.steps) == len(timesteps):
            return int(recorded.get("first_step") or 0)
        raise _count_error(plan, len(timesteps))
    if plan.timesteps is None or plan.steps == len(timesteps):
        if plan.steps != len(timesteps):
            raise _count_error(plan, len(timesteps))
        worst = _worst(plan.timesteps or timesteps, timesteps)
        if worst is not None:
            raise PlanError(
                f"the plan has timestep {plan.timesteps[worst]:g} at step {worst}, the scheduler "  # type: ignore[index]
                f"{timesteps[worst]:g}; calibrate with the scheduler's present settings"
            )
        return 0
    for first in range(len(timesteps) - plan.steps + 1):
        if _worst(plan.timesteps, timesteps[first : first + plan.steps]) is None:
            return first
    raise _count_error(plan, len(timesteps))


def _worst(wanted: tuple[float, ...] | list[float], present: list[float]) -> int | None:
    """Return the step where two schedules are farthest apart, or None if they agree."""
    worst = max(range(len(wanted)), key=lambda step: abs(wanted[step] - present[step]))
    differ = abs(wanted[worst] - present[worst]) > 1e-3 * max(1.0, abs(wanted[worst]))
    return worst if differ else None


def _count_error(plan: Plan, steps: int) -> PlanError:
    return PlanError(
        f"the plan is for {plan.steps} steps, the pipeline runs {steps}; set num_inference_steps so that "
        "the scheduler has as many, or calibrate and plan for this number"
    )
