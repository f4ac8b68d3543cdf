"""A plan for another part of the schedule than it was made for: one that begins in the middle, or all of it."""

from collections.abc import Sequence
from dataclasses import replace

from soda_compile.errors import PlanError
from soda_compile.plans.actions import COMPUTE, STALE, Action
from soda_compile.plans.fitted_weights import OUTPUT, FittedWeights
from soda_compile.plans.plan import Plan
from soda_compile.plans.reads import reads
from soda_compile.plans.watched_region import WatchedRegion, forecasts_at_anchors


def resume_at(plan: Plan, start: int) -> Plan:
    """Return the plan from step ``start`` on, where nothing has been kept before it.

    The first step computes everything. A forecast that would need values from before it becomes one of the highest
    order that the values since then allow, or reuse. Fitted weights stay where all regions that they serve do what they
    did with values of the same steps; elsewhere they were fitted to something else, and the polynomial takes over.

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
    actions = tuple(_resumed_row(row[start:]) for row in plan.actions)
    return replace(
        plan,
        actions=actions,
        timesteps=plan.timesteps[start:] if plan.timesteps is not None else None,
        flop_ratio=None,
        predicted_error=None,
        method=tuple({**dict(plan.method), "start": start}.items()),
        weights=_resumed_weights(plan, actions, start),
        watched=_resumed_watched(plan, actions, start),
    )


def within(plan: Plan, first: int, timesteps: Sequence[float]) -> Plan:
    """Return the plan for a whole schedule of which it covers a part: before it and behind it all is computed.

    Args:
        plan: The plan.
        first: Step of the schedule that is its step 0.
        timesteps: Those of the schedule.

    Raises:
        PlanError: It does not lie in the schedule.
    """
    steps = len(timesteps)
    behind = steps - first - plan.steps
    if first < 0 or behind < 0:
        raise PlanError(f"the plan has {plan.steps} steps, which do not lie in a schedule of {steps} from {first} on")
    if plan.steps == steps:
        return plan
    ratio = plan.flop_ratio
    return replace(
        plan,
        actions=tuple(((COMPUTE,) * first + row + (COMPUTE,) * behind) for row in plan.actions),
        timesteps=tuple(timesteps),
        flop_ratio=None if ratio is None else (ratio * plan.steps + steps - plan.steps) / steps,
        predicted_error=None,
        weights=tuple(replace(each, step=first + each.step) for each in plan.weights),
        watched=plan.watched and plan.watched.moved(first, range(plan.steps)),
        method=tuple((key, value) for key, value in plan.method if key not in ("first_step", "schedule_steps")),
    )


def _resumed_weights(plan: Plan, actions: Sequence[tuple[Action, ...]], start: int) -> tuple[FittedWeights, ...]:
    before, after = (list(map(reads, rows)) for rows in (plan.actions, actions))

    def stays(each: FittedWeights) -> bool:
        step, stale = each.step - start, STALE[each.order]
        if each.order == OUTPUT:
            later = [anchor for anchor in {start, *plan.anchors} if start <= anchor < each.step]
            wanted = [anchor for anchor in plan.anchors if anchor < each.step]
            read = len(each.values) - 1
            return step > 0 and sorted(later)[-read:] == wanted[-read:]
        return step > 0 and all(
            (row[each.step] == stale) == (resumed[step] == stale)
            and (resumed[step] != stale or old[each.step] == [start + source for source in new[step]])
            for row, resumed, old, new in zip(plan.actions, actions, before, after, strict=True)
        )

    return tuple(replace(each, step=each.step - start) for each in plan.weights if stays(each))


def _resumed_watched(plan: Plan, actions: Sequence[tuple[Action, ...]], start: int) -> WatchedRegion | None:
    """Return what is expected at anchors whose forecasts are made of the same values as before."""
    if plan.watched is None:
        return None
    number = plan.regions.index(plan.watched.region)
    later = [step - start for step in plan.anchors if step >= start]
    before = forecasts_at_anchors(plan.actions[number], plan.anchors)
    after = forecasts_at_anchors(actions[number], later)
    same = [
        step + start
        for step, sources in after.items()
        if before.get(step + start) == tuple(start + source for source in sources)
    ]
    return plan.watched.moved(-start, same)


def _resumed_row(row: tuple[Action, ...]) -> tuple[Action, ...]:
    shortened = [COMPUTE]
    for action in row[1:]:
        computed = shortened.count(COMPUTE)
        if action.history > computed:
            action = STALE[computed - 1]
        shortened.append(action)
    return tuple(shortened)
