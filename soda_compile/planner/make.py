"""From sensitivity data to a plan."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from soda_compile.errors import OptionError, PlanError
from soda_compile.planner import strategies
from soda_compile.planner.costs import Costs
from soda_compile.planner.problem import Actions, Draft, Problem
from soda_compile.planner.target import Target
from soda_compile.plans.plan import Plan
from soda_compile.plans.plan_file import Scalar
from soda_compile.plans.profile import Profile
from soda_compile.plans.pruning import Pruning
from soda_compile.plans.sensitivity import Metric, Sensitivity

INHERITED_ERROR = 0.4


def plan(
    sensitivity: Sensitivity,
    *,
    anchors: int | None = None,
    speedup: float | None = None,
    latency_ms: float | None = None,
    max_error: float | None = None,
    memory_bytes: int | None = None,
    operator: str | None = None,
    objective: Metric = "residual",
    step_weights: bool = False,
    pruning: Pruning | None = None,
    unified: bool | None = None,
    inherited_error: float = INHERITED_ERROR,
    profile: Profile | None = None,
    paper: bool = False,
    paper_lambda: float = -1.0,
) -> Plan:
    """Chooses what every region does at every step so that the summed error is least.

    Without pruning, all regions compute at the same steps, the anchors, and exactly one of `anchors`, `speedup`,
    `latency_ms` and `max_error` is given. An interval costs the sum over its stale steps of the step's weight times
    the sum over regions of the error of the operator that will run there (see `StaleErrors`).

    The unified strategy (with `pruning`, or `unified=True`) also lets every region choose at every step between
    anchors: reuse, forecast, prune at each rate, compute. It takes exactly one of `speedup`, `latency_ms` and
    `max_error`, and `anchors` on top if their number is to be fixed. See `solve_unified` for what is minimised and
    how far from the best the result can be; the plan's method holds a bound. Regions prune only where that is both
    faster than computing and better than every forecast or reuse, and the plan is never worse than without pruning.

    Args:
        sensitivity: the measured errors.
        anchors: number of steps that compute every region; step 0 is always one.
        speedup: cost of computing everything / cost of the plan, to be reached with the least error. Costs are
            measured times with a profile, FLOPs without.
        latency_ms: the measured time of all denoiser calls of a generation, to be kept with the least error.
        max_error: the largest summed error, in the unit of `Plan.predicted_error`, to be kept at the least cost.
        memory_bytes: the most that kept values may take, for one stream; the order of forecasts is lowered until
            they fit. What the scores of pruning keep comes on top.
        operator: what stale regions do: the name of one of `OPERATORS`, or "auto" for the one with the smallest
            measured error per step and region, among those offered by default. "forecast1" by default, "auto" in the
            unified strategy.
        objective: the metric that is summed: "residual", "relative" or "cosine".
        step_weights: weight each step by how far an error there moves the sample. Off by default: on the digits
            model (benchmarks/results) unweighted residual errors came closer to the original in every comparison.
        pruning: how pruned regions pick their tokens; None for no pruning.
        unified: whether to use the unified strategy; by default where `pruning` is given.
        inherited_error: for the unified strategy, the share of a stale value's error that remains when a region
            computes between anchors, where its inputs are stale: 0 takes such a value for exact, 1 for no better than
            a stale one, so that regions compute at anchors only. The default was measured on the digits model
            (benchmarks/results/inherited_error.json).
        profile: times measured on the device at hand, by `soda_compile.profile`.
        paper: exactly the method of SODA (arXiv 2603.07057): cosine error of reuse, no step weights; without pruning
            its schedule (OFS+DCS), with pruning its unified adaptive strategy (UAS), which takes `anchors` and a
            `speedup` or `latency_ms`.
        paper_lambda: lambda of UAS, in alpha = lambda * Ec + beta; alpha is the share of tokens that keep their
            value, so a negative lambda computes more of what is more sensitive.

    Raises:
        OptionError: contradicting or unknown options.
        PlanError: no plan reaches what is asked for, or the profile is for another model.
        SensitivityError: a table that is needed was not measured.
    """
    if paper:
        if (operator or "forecast1", objective, step_weights, unified) != ("forecast1", "residual", False, None):
            raise OptionError(
                "paper=True fixes operator, objective, step_weights and unified; leave them at their defaults"
            )
        operator, objective = "reuse", "cosine"
    chosen = unified if unified is not None else pruning is not None
    if pruning is not None and not chosen:
        raise OptionError("unified=False plans anchors alone, which never prune; leave out pruning or unified")
    target = Target(anchors, speedup, latency_ms, max_error)
    target.check(sensitivity.info.steps, anchors_alone=not chosen)
    operator = operator or ("auto" if chosen else "forecast1")
    problem = Problem.read(sensitivity, operator, objective, step_weights, target, pruning, profile, inherited_error)
    if paper and chosen:
        if anchors is None or max_error is not None:
            raise OptionError("paper=True with pruning needs anchors and one of speedup and latency_ms")
        name, strategy = "paper", _paper_unified(paper_lambda)
    elif chosen:
        name, strategy = "unified", strategies.unified
    else:
        name, strategy = "paper" if paper else "dynamic programming", strategies.anchors_alone
    return _finish(problem, name, _within_memory(problem, strategy, memory_bytes))


def fixed_interval_plan(
    sensitivity: Sensitivity,
    *,
    anchors: int | None = None,
    speedup: float | None = None,
    operator: str = "forecast1",
    objective: Metric = "residual",
    step_weights: bool = False,
    profile: Profile | None = None,
) -> Plan:
    """Spreads the anchors evenly: FORA with "reuse", TaylorSeer with a forecast.

    The objective only fills in the predicted error, which is None where an interval was not measured, and decides
    for "auto". See `plan` for the arguments and errors.
    """
    target = Target(anchors, speedup)
    target.check(sensitivity.info.steps, anchors_alone=True)
    problem = Problem.read(sensitivity, operator, objective, step_weights, target, profile=profile)
    return _finish(problem, "fixed interval", strategies.evenly(problem))


def flop_ratio(sensitivity: Sensitivity, actions: Actions) -> float:
    """FLOPs of the plan / FLOPs of computing everything; what a forecast itself takes is left out.

    Args:
        sensitivity: has the FLOPs of each region.
        actions: indexed [region][step].
    """
    return Costs.read(sensitivity).of(actions) / (sensitivity.total_flops * sensitivity.info.steps)


def slot_memory_bytes(profile: Profile, actions: Actions) -> int:
    """Memory of the kept values of one stream: one copy for each computed value that an action reads at once."""
    copies = [max(action.history for action in row) for row in actions]
    return round(float(profile.memory_bytes @ np.array(copies)))


def _paper_unified(slope: float) -> Callable[[Problem], Draft]:
    return lambda problem: strategies.paper_unified(problem, slope)


def _within_memory(problem: Problem, strategy: Callable[[Problem], Draft], memory_bytes: int | None) -> Draft:
    """What the strategy finds with forecasts of the highest order that fits."""
    if memory_bytes is None:
        return strategy(problem)
    if problem.profile is None:
        raise OptionError("memory_bytes needs to know the regions' sizes; pass profile=soda_compile.profile(...) too")
    for order in reversed([action.order for action in problem.errors.menu]):
        draft = strategy(problem.restricted(order))
        least = slot_memory_bytes(problem.profile, draft.actions)
        if least <= memory_bytes:
            return draft
    raise PlanError(f"memory_bytes is {memory_bytes}, but even a plan without forecasts keeps {least} bytes")


def _finish(problem: Problem, name: str, draft: Draft) -> Plan:
    """The plan, with what it was made for and how."""
    info, target, actions = problem.sensitivity.info, problem.target, draft.actions
    method: dict[str, Scalar] = {
        "planner": name,
        "operator": problem.operator,
        "objective": problem.objective,
        "step_weights": problem.weights is problem.sensitivity.step_weights,
        "speedup": target.speedup,
        "samples": info.samples,
        **draft.method,
    }
    method |= {key: getattr(target, key) for key in ("latency_ms", "max_error") if getattr(target, key) is not None}
    if problem.pruning is not None:
        method["score"] = problem.pruning.score
    if problem.profile is not None:
        total_us = problem.costs.of(actions)
        method |= {
            "device": problem.profile.device,
            "latency_predicted_ms": total_us * info.calls_per_step / 1000,
            "speedup_predicted": info.steps * problem.costs.full / total_us,
        }
    made = Plan(
        fingerprint=info.fingerprint,
        regions=info.regions,
        actions=actions,
        timesteps=info.timesteps,
        timestep_input=info.timestep_input,
        scheduler=info.scheduler,
        scheduler_digest=info.scheduler_digest,
        guidance=info.guidance,
        calls_per_step=info.calls_per_step,
        flop_ratio=flop_ratio(problem.sensitivity, actions),
        predicted_error=draft.error,
        pruning=problem.pruning if any(action.kind == "prune" for row in actions for action in row) else None,
    )
    return replace(made, method=tuple({**method, "anchors": len(made.anchors)}.items()))
