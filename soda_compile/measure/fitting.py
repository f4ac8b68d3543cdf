"""Fits the weights of kept values, so that each stale step takes the sample to the original's next state.

A stale step of a plan is run from the sample that the plan has led to, and the few weights with which the kept values
enter are chosen by least squares: Gauss-Newton from those of the polynomial, with a ridge that holds them there where
the values say little. So an error that was made is partly taken back at the next stale step, which costs nothing at run
time (compare L2P, which fits coefficients to outputs instead). The weights of whole stretches are then shifted for the
last samples, see ``refining``.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from soda_compile.errors import OptionError
from soda_compile.measure.gram import Floats
from soda_compile.measure.planned_run import PlannedRun, norms
from soda_compile.measure.player import Player, playing
from soda_compile.measure.recording import Recording
from soda_compile.measure.refining import refine as refine_weights
from soda_compile.measure.weight_numbers import DIFFERENCE, Numbers, by_order, difference_for, polynomial_weights
from soda_compile.plans.fitted_weights import MOST_OUTPUTS, FittedWeights
from soda_compile.plans.plan import Plan
from soda_compile.storage.progress import progress_bar

PASSES = 2
RIDGES = (1e-3, 1e-2, 1e-1)  # of the mean curvature; which is best depends on the plan
LONGEST = 0.5  # of a pass, against the largest weight, or 1 if that is more

Deviations = Callable[[Floats], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Fit:
    """A plan with fitted weights.

    Attributes:
        plan: The plan; as it was given where no weights bring the generations closer.
        before: Relative L2 of the last sample under the polynomial's weights, float64 [samples].
        after: The same under the plan.
        denoiser_calls: Cost of fitting, in denoiser calls of the original with one batch.
        seconds: Time that it took.
    """

    plan: Plan
    before: Floats
    after: Floats
    denoiser_calls: float
    seconds: float

    @property
    def fitted_steps(self) -> int:
        """Number of stale steps with weights of their own."""
        return len({each.step for each in self.plan.weights})

    def __str__(self) -> str:
        return (
            f"{self.before.mean():.2%} off with the polynomial, {self.after.mean():.2%} with weights at "
            f"{self.fitted_steps} steps ({self.denoiser_calls:.0f} denoiser calls, {self.seconds:.0f} s)"
        )


def fit(
    recording: Recording,
    plan: Plan,
    *,
    outputs: int = MOST_OUTPUTS,
    ridges: Sequence[float] = RIDGES,
    refine: bool = True,
) -> Fit:
    """Fit weights of kept values to recorded generations, a few numbers for each stale step.

    Weights are shared by all regions that an operator serves at a step. With ``outputs``, what a stale step gives is
    mixed with what the denoiser gave at as many anchors before it: the kept outputs are as large as its input, and give
    back what no weight before the last normalisation can. Steps that prune keep the polynomial. Where a step's weights
    do not bring the sample closer to the original's, it stays as well. The generations are run once for each ridge, and
    the weights that bring the last samples closest are kept; none, if none does.

    Args:
        recording: Of ``record``.
        plan: The plan. Where it has weights already, these are where the search begins.
        outputs: Outputs that are kept, 0 to 2; 0 for weights of the regions' values alone.
        ridges: Over the mean curvature: how strongly weights are held at the polynomial's.
        refine: Whether to shift the weights of whole stretches of steps then, so that the last samples come closer.
            That is done where samples which are left out come closer too, and needs two of them.

    Raises:
        OptionError: For another number of outputs, or without a ridge above zero.
        PlanError: If the plan does not fit.
        SensitivityError: If the generations cannot be run again.
    """
    if outputs not in range(MOST_OUTPUTS + 1):
        raise OptionError(f"outputs is {outputs!r}; 0 to {MOST_OUTPUTS} can be kept")
    if not ridges or min(ridges) <= 0:
        raise OptionError(f"ridges are {tuple(ridges)}; give one or more above zero, such as {RIDGES}")
    started = time.perf_counter()
    with playing(recording) as player, progress_bar() as progress:
        share = player.computed_share
        before = PlannedRun.begin(player, recording, replace(plan, weights=())).finish()
        least, best = before, tuple[FittedWeights, ...]()
        for ridge in progress.track(ridges, description="fitting"):
            weights, after = _fit_run(player, recording, plan, outputs, ridge)
            if float(after.mean()) < float(least.mean()):
                least, best = after, weights
        calls = player.computed_share - share
    made = Fit(_with_weights(plan, best, recording), before, least, calls, time.perf_counter() - started)
    return refined(recording, made, outputs) if refine else made


def refined(recording: Recording, fit: Fit, outputs: int = MOST_OUTPUTS) -> Fit:
    """Return a fit with weights shifted so that the last samples come closer, see ``refining``; what it takes is added.

    Args:
        recording: Of ``record``.
        fit: Of ``fit``.
        outputs: Outputs that are kept.
    """
    started = time.perf_counter()
    polynomial = polynomial_weights(fit.plan, outputs)
    with playing(recording) as player:
        share = player.computed_share
        numbers = Numbers.of(polynomial, fit.plan.weights)
        found = refine_weights(player, recording, replace(fit.plan, weights=polynomial), numbers)
        calls = fit.denoiser_calls + player.computed_share - share
    weights, after = found if found is not None else (fit.plan.weights, fit.after)
    plan = _with_weights(fit.plan, weights, recording)
    return Fit(plan, fit.before, after, calls, fit.seconds + time.perf_counter() - started)


def _with_weights(plan: Plan, weights: tuple[FittedWeights, ...], recording: Recording) -> Plan:
    if not weights:
        return replace(plan, weights=())
    method = {**dict(plan.method), "fitted_samples": recording.samples}
    return replace(plan, weights=weights, method=tuple(method.items()))


def _fit_run(
    player: Player, recording: Recording, plan: Plan, outputs: int, ridge: float
) -> tuple[tuple[FittedWeights, ...], Floats]:
    """Run the generations under a plan and fit each step as it comes; return the weights, and what is off at the end.

    Weights that stay those of the polynomial are left out.
    """
    polynomial = polynomial_weights(plan, outputs)
    home, start = Numbers.of(polynomial), Numbers.of(polynomial, plan.weights)
    run = PlannedRun.begin(player, recording, replace(plan, weights=polynomial))
    chosen: list[FittedWeights] = []
    for step in range(plan.steps):
        fitted = _fit_step(run, home.at(step), start.at(step), ridge)
        chosen += fitted.changed()
        if step < plan.steps - 1:
            run.take_step(by_order(fitted.weights()))
    return tuple(chosen), norms(run.deviations(run.try_step(by_order(fitted.weights()))))


def _fit_step(run: PlannedRun, home: Numbers, start: Numbers, ridge: float) -> Numbers:
    """Return the numbers of the step that is due."""
    if not home.values:
        return home

    def deviations(flat: Floats) -> torch.Tensor:
        return run.deviations(run.try_step(by_order(home.with_flat(flat).weights())))

    difference = difference_for(run.recording)
    return home.with_flat(least_squares(deviations, home.flat(), start.flat(), ridge, difference))


def least_squares(
    deviations: Deviations, home: Floats, start: Floats, ridge: float = RIDGES[0], difference: float = DIFFERENCE
) -> Floats:
    """Return weights that make deviations small, by Gauss-Newton with a ridge; never worse than ``home``.

    Minimises ``mean |d(w)|^2 + ridge |w - home|^2`` over a few numbers. Steps are bounded and halved until they help.

    Args:
        deviations: What samples are off for given weights, float64 [samples, values].
        home: Weights that the ridge pulls to, and to which nothing else is preferred unless it is better.
        start: Where the search begins.
        ridge: Over the mean curvature.
        difference: Step of finite differences.

    Raises:
        OptionError: If the deviations at ``home`` are not finite.
    """
    at_home = deviations(home)
    if not bool(at_home.isfinite().all()):
        raise OptionError("samples under the plan are not finite, so nothing can be fitted to them")
    least, best = _mean_square(at_home), home
    weights, off = start, at_home if np.array_equal(start, home) else deviations(start)
    for _ in range(PASSES):
        error = _mean_square(off)
        if not np.isfinite(error):
            weights, off, error = home, at_home, _mean_square(at_home)
        if error < least:
            least, best = error, weights
        slopes = [deviations(weights + difference * unit) - off for unit in np.eye(len(weights))]
        jacobian = (torch.stack(slopes).flatten(1) / difference).numpy().T
        residual = off.flatten().numpy()
        normal = jacobian.T @ jacobian
        held = ridge * float(np.trace(normal)) / len(weights)
        if not np.isfinite(held) or held == 0:
            break
        pull = jacobian.T @ residual + held * (weights - home)
        change = -np.linalg.solve(normal + held * np.eye(len(weights)), pull)
        change *= min(1.0, LONGEST * max(1.0, float(np.abs(weights).max())) / float(np.abs(change).max() or 1.0))
        weights, off, moved = _shortened(deviations, weights, off, change)
        if not moved:
            break
    return weights if _mean_square(off) < least else best


def _shortened(
    deviations: Deviations, weights: Floats, off: torch.Tensor, change: Floats
) -> tuple[Floats, torch.Tensor, bool]:
    """Take a step, or a half, a quarter of it; none where none helps."""
    for share in (1.0, 0.5, 0.25):
        tried = weights + share * change
        found = deviations(tried)
        if _mean_square(found) < _mean_square(off):
            return tried, found, True
    return weights, off, False


def _mean_square(deviations: torch.Tensor) -> float:
    return float(deviations.square().sum(1).mean())
