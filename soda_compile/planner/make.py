"""From sensitivity data to a plan."""

import math
from collections.abc import Sequence

import numpy as np

from soda_compile.errors import OptionError, PlanError
from soda_compile.plan_file import Scalar
from soda_compile.planner.anchors import IntervalCosts, Schedules
from soda_compile.planner.stale_errors import Floats, OperatorChoice, StaleErrors
from soda_compile.plans import COMPUTE, Action, Plan
from soda_compile.sensitivity import Metric, Sensitivity


def plan(
    sensitivity: Sensitivity,
    *,
    anchors: int | None = None,
    speedup: float | None = None,
    operator: OperatorChoice = "forecast1",
    objective: Metric = "residual",
    step_weights: bool = False,
    paper: bool = False,
) -> Plan:
    """Chooses the anchor steps that minimise the summed error of all stale steps.

    Exactly one of `anchors` and `speedup` is given. An interval costs the sum over its stale steps of the step's
    weight times the sum over regions of the error of the operator that will run there (see `StaleErrors`).

    Args:
        sensitivity: the measured errors.
        anchors: number of steps that compute every region; step 0 is always one.
        speedup: FLOPs of computing everything / FLOPs of the plan, to be reached with as many anchors as possible.
        operator: what stale regions do: "reuse", "forecast1", "forecast2", or "auto" for the one with the smallest
            measured error per step and region.
        objective: the metric that is summed: "residual", "relative" or "cosine".
        step_weights: weight each step by how far an error there moves the sample. Off by default: on the digits
            model (benchmarks/results) unweighted residual errors came closer in seven of eight comparisons.
        paper: exactly the schedule of SODA (arXiv 2603.07057, OFS+DCS): cosine error of reuse, no step weights.

    Raises:
        OptionError: contradicting or unknown options.
        PlanError: no schedule with that many anchors or that speedup.
        SensitivityError: a table that is needed was not measured.
    """
    if paper:
        if (operator, objective, step_weights) != ("forecast1", "residual", False):
            raise OptionError("paper=True fixes operator, objective and step_weights; leave them at their defaults")
        operator, objective, step_weights = "reuse", "cosine", False
    errors = StaleErrors.read(sensitivity, operator, objective)
    costs = IntervalCosts.build(errors, _weights(sensitivity, step_weights))
    schedules = Schedules.solve(costs)
    feasible = [count for count, error in enumerate(schedules.errors) if math.isfinite(error)]
    count = _count(sensitivity, anchors, speedup, feasible)
    if count not in feasible:
        raise _no_schedule(sensitivity, operator, count, feasible)
    method: dict[str, Scalar] = {
        "planner": "paper" if paper else "dynamic programming",
        "operator": operator,
        "objective": objective,
        "step_weights": step_weights,
        "speedup": speedup,
    }
    return _make_plan(sensitivity, errors, costs, schedules.anchors(count), method)


def fixed_interval_plan(
    sensitivity: Sensitivity,
    *,
    anchors: int | None = None,
    speedup: float | None = None,
    operator: OperatorChoice = "forecast1",
    objective: Metric = "residual",
    step_weights: bool = False,
) -> Plan:
    """Spreads the anchors evenly: FORA with "reuse", TaylorSeer with a forecast.

    The objective only fills in the predicted error, which is None where an interval was not measured, and decides
    for "auto". See `plan` for the arguments and errors.
    """
    steps = sensitivity.info.steps
    count = _count(sensitivity, anchors, speedup, range(1, steps + 1))
    errors = StaleErrors.read(sensitivity, operator, objective)
    costs = IntervalCosts.build(errors, _weights(sensitivity, step_weights))
    method: dict[str, Scalar] = {
        "planner": "fixed interval",
        "operator": operator,
        "objective": objective,
        "step_weights": step_weights,
        "speedup": speedup,
    }
    return _make_plan(sensitivity, errors, costs, tuple(i * steps // count for i in range(count)), method)


def flop_ratio(sensitivity: Sensitivity, actions: tuple[tuple[Action, ...], ...]) -> float:
    """FLOPs of the plan / FLOPs of computing everything; what a forecast itself takes is left out.

    Args:
        sensitivity: has the FLOPs of each region.
        actions: indexed [region][step].
    """
    stale = np.array([sum(action != COMPUTE for action in row) for row in actions])
    return 1.0 - float(sensitivity.region_flops @ stale) / (sensitivity.total_flops * sensitivity.info.steps)


def _weights(sensitivity: Sensitivity, use: bool) -> Floats:
    return sensitivity.step_weights if use else np.ones(sensitivity.info.steps)


def _count(sensitivity: Sensitivity, anchors: int | None, speedup: float | None, feasible: Sequence[int]) -> int:
    """The number of anchors asked for, or the largest feasible number that reaches the speedup."""
    steps = sensitivity.info.steps
    if anchors is not None and speedup is None:
        if anchors not in range(1, steps + 1):
            raise PlanError(f"anchors is {anchors}; with {steps} steps it must be a whole number from 1 to {steps}")
        return int(anchors)
    if speedup is None or anchors is not None:
        raise OptionError(f"give exactly one of anchors and speedup; got anchors={anchors}, speedup={speedup}")
    if not (math.isfinite(speedup) and speedup >= 1):
        raise PlanError(f"speedup is {speedup}; it must be a finite number, at least 1")
    # The FLOPs depend on the number of anchors only, not on where they are.
    share = float(sensitivity.region_flops.sum()) / sensitivity.total_flops
    ratios = {count: 1 - (1 - count / steps) * share for count in feasible}
    enough = [count for count, ratio in ratios.items() if ratio * speedup <= 1 + 1e-9]
    if not enough:
        fewest = min(feasible)
        hint = f" or calibrate with a max_interval above {sensitivity.info.max_interval}" if fewest > 1 else ""
        raise PlanError(
            f"a speedup of {speedup:g} by FLOPs is out of reach: the most is {1 / ratios[fewest]:.3f}, "
            f"with {fewest} of {steps} steps as anchors; ask for less{hint}"
        )
    return max(enough)


def _no_schedule(sensitivity: Sensitivity, operator: str, anchors: int, feasible: Sequence[int]) -> PlanError:
    steps, width = sensitivity.info.steps, sensitivity.info.max_interval
    interval = -(-steps // anchors)
    more = next(count for count in feasible if count > anchors)
    if interval > width:
        return PlanError(
            f"{anchors} anchors over {steps} steps need an interval of {interval} steps, but the sensitivity holds up "
            f"to {width}: calibrate with max_interval >= {interval}, or use {more} anchors"
        )
    return PlanError(
        f"every schedule of {anchors} anchors over {steps} steps needs an error of operator {operator!r} that was not "
        f"measured: use {more} anchors, or calibrate with a max_interval above {width}"
    )


def _make_plan(
    sensitivity: Sensitivity,
    errors: StaleErrors,
    costs: IntervalCosts,
    anchors: tuple[int, ...],
    method: dict[str, Scalar],
) -> Plan:
    info = sensitivity.info
    everywhere = (COMPUTE,) * len(info.regions)
    columns: list[tuple[Action, ...]] = []
    spacing = 0
    for anchor, end in zip(anchors, (*anchors[1:], info.steps), strict=True):
        columns.append(everywhere)
        columns += [errors.actions(step, anchor, spacing) for step in range(anchor + 1, end)]
        spacing = end - anchor
    actions = tuple(zip(*columns, strict=True))
    total = costs.total(anchors)
    return Plan(
        fingerprint=info.fingerprint,
        regions=info.regions,
        actions=actions,
        timesteps=info.timesteps,
        timestep_input=info.timestep_input,
        scheduler=info.scheduler,
        scheduler_digest=info.scheduler_digest,
        guidance=info.guidance,
        calls_per_step=info.calls_per_step,
        flop_ratio=flop_ratio(sensitivity, actions),
        predicted_error=total if math.isfinite(total) else None,
        method=tuple({**method, "anchors": len(anchors), "samples": info.samples}.items()),
    )
