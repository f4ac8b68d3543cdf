"""A plan for a trajectory, or a branch of guidance, that begins in the middle of the schedule."""

from dataclasses import replace

from soda_compile.errors import PlanError
from soda_compile.plans.actions import COMPUTE, STALE, Action
from soda_compile.plans.plan import Plan


def resume_at(plan: Plan, start: int) -> Plan:
    """Return the plan from step ``start`` on, where nothing has been kept before it.

    The first step computes everything. A forecast that would need values from before it becomes one of the highest
    order that the values since then allow, or reuse.

    Args:
        plan: The plan.
        start: The step that becomes step 0.

    Raises:
        PlanError: The plan has no such step.
    """
    if not 0 <= start < plan.steps:
        raise PlanError(f"the plan has steps 0 to {plan.steps - 1}; it has no step {start} to begin at")
    if start == 0:
        return plan
    return replace(
        plan,
        actions=tuple(_resumed_row(row[start:]) for row in plan.actions),
        timesteps=plan.timesteps[start:] if plan.timesteps is not None else None,
        flop_ratio=None,
        predicted_error=None,
        method=tuple({**dict(plan.method), "start": start}.items()),
    )


def _resumed_row(row: tuple[Action, ...]) -> tuple[Action, ...]:
    shortened = [COMPUTE]
    for action in row[1:]:
        computed = shortened.count(COMPUTE)
        if action.history > computed:
            action = STALE[computed - 1]
        shortened.append(action)
    return tuple(shortened)
