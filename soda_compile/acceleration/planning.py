"""``derive`` and ``plan``: from one measurement to the sensitivity, and a plan, of any schedule."""

from collections.abc import Mapping
from typing import Any

from soda_compile.distributed.group import Group
from soda_compile.integrations.diffusers.derive import derive_for, scheduler_at
from soda_compile.planner import Goal, Strategy
from soda_compile.planner import plan as make_plan
from soda_compile.plans.derived import Derived
from soda_compile.plans.plan import Plan
from soda_compile.plans.profile import Profile
from soda_compile.plans.sensitivity import Sensitivity


def derive(sensitivity: Sensitivity, *, steps: int | None = None, scheduler: Any = None) -> Derived:
    """Return the sensitivity of another schedule, read from what was measured, and an estimate of what that loses.

    For example, ``print(derive(sensitivity, steps=28).loss)``. The noise level says what a step is to the model, so
    errors are taken over where both levels of a pair were measured, and read between them elsewhere; pairs further
    apart than was measured stay unknown.

    Args:
        sensitivity: Measured errors.
        steps: Denoising steps that shall be run; by default those that were measured, or that ``scheduler`` has set.
        scheduler: The diffusers scheduler that shall run them; by default the measured one. Give it without ``steps``
            where its timesteps depend on more than their number, as under dynamic shifting, and are set.

    Raises:
        SensitivityError: If the schedule is too far from the measured one, or noise levels are not known.
    """
    wanted = scheduler_at(sensitivity, scheduler, steps)
    return derive_for(sensitivity, wanted, () if steps is None else (steps,))


def plan(
    sensitivity: Sensitivity,
    goal: Goal | None = None,
    strategy: Strategy | None = None,
    *,
    steps: int | None = None,
    scheduler: Any = None,
    profile: Profile | None = None,
    process_group: Any = None,
    **numbers: Any,
) -> Plan:
    """Choose for every region and step an action, so that the goal is reached with the least error.

    ``plan(sensitivity, speedup=2)`` is short for ``plan(sensitivity, Goal(speedup=2), AnchorSchedule())``. The plan is
    for the measured schedule, or for another one: the errors of its steps are read from what was measured between
    those noise levels. ``method`` of the plan then says ``derived_from``.

    Args:
        sensitivity: Measured errors.
        goal: Numbers to reach.
        strategy: How to search, such as ``Unified(pruning=Pruning("drift"))``; by default ``AnchorSchedule()``.
        steps: Denoising steps that shall be run; see ``derive``.
        scheduler: The diffusers scheduler that shall run them; see ``derive``.
        profile: Times measured on the device at hand by ``soda_compile.profile``; without one, costs are FLOPs.
        process_group: A process group of ``torch.distributed``: its first rank plans, and all ranks get that plan.
            Ranks that share a model must follow one and the same.
        **numbers: The fields of ``Goal``, instead of one.

    Raises:
        OptionError: If options contradict each other or are unknown.
        PlanError: If no plan reaches the goal, or the profile is for another model.
        SensitivityError: If a table that is needed was not measured, or the schedule is too far from the measured one.
        DistributedError: If planning failed on the first rank, for the others.
    """

    def made() -> Plan:
        return _plan(sensitivity, goal, strategy, steps, scheduler, profile, numbers)

    if process_group is None:
        return made()
    text = Group.of(process_group, "process_group").from_first(lambda: made().to_json(), "planning")
    return Plan.from_json(text, "the plan of the first rank")


def _plan(
    sensitivity: Sensitivity,
    goal: Goal | None,
    strategy: Strategy | None,
    steps: int | None,
    scheduler: Any,
    profile: Profile | None,
    numbers: Mapping[str, Any],
) -> Plan:
    if scheduler is not None or (steps is not None and steps != sensitivity.info.steps):
        sensitivity = derive(sensitivity, steps=steps, scheduler=scheduler).sensitivity
    return make_plan(sensitivity, goal, strategy, profile=profile, **numbers)
