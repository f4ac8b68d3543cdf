"""Shifts fitted weights so that the last samples come closer, and not the next ones alone.

``fit`` chooses the weights of each step for the state that follows it. What an interval leaves is carried on, and how
much of it is left at the end depends on where it lies, which the next state does not tell. So the numbers of all steps
of a stretch are shifted together, by one step of Gauss-Newton on what the last samples are off. There are few shifts,
and the ridge is the one that brings samples closer which had no part in choosing them: what helps some generations
shall help others too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from soda_compile.measure.gram import Floats
from soda_compile.measure.planned_run import PlannedRun, norms
from soda_compile.measure.player import Player
from soda_compile.measure.recording import Recording
from soda_compile.measure.sketch import Sketch
from soda_compile.measure.weight_numbers import Numbers, by_step, difference_for
from soda_compile.plans.fitted_weights import FittedWeights
from soda_compile.plans.plan import Plan

STRETCHES = 8
"""Most stretches of a schedule that have shifts of their own; each costs some runs, and more gain little."""
RIDGES = (1.0, 1e-1, 1e-2, 1e-3)  # of the mean curvature
LEAST = 0.1  # norm that a sample counts with at least, over the mean
LENGTH = 512  # of what stands for the deviation of a sample


@dataclass(frozen=True)
class Shift:
    """What is added to one number at all steps of a stretch.

    Attributes:
        first: The first of these steps; before it, samples are the same with it and without.
        places: Its places among ``Numbers.flat``.
    """

    first: int
    places: tuple[int, ...]


def refine(
    player: Player, recording: Recording, plan: Plan, numbers: Numbers
) -> tuple[tuple[FittedWeights, ...], Floats] | None:
    """Return shifted weights and how far the last samples are off with them, float64 [samples].

    None where samples that were left out come no closer, or the recorded ones do not.

    Args:
        player: Runs the denoiser.
        recording: The original generations.
        plan: With the polynomial's weights in the places of ``numbers``.
        numbers: What the weights are.
    """
    shifts = shifts_of(plan.anchors, numbers)
    if not shifts or recording.samples < 2:
        return None
    run = PlannedRun.begin(player, recording, plan)
    before, off, slopes = _slopes(run, numbers, shifts, difference_for(recording))
    amounts = chosen_amounts(off, slopes)
    if amounts is None:
        return None
    for share in (1.0, 0.5):
        shifted = _shifted(numbers, zip(shifts, share * amounts, strict=True))
        after = PlannedRun.begin(player, recording, plan).finish(by_step(shifted.weights()))
        if float(after.mean()) < float(before.mean()):
            return shifted.changed(), after
    return None


def shifts_of(anchors: Sequence[int], numbers: Numbers) -> list[Shift]:
    """Return a shift for each number and stretch; stretches are of about as many intervals between anchors each.

    Args:
        anchors: Steps that compute everything.
        numbers: Of all steps.
    """
    count = min(STRETCHES, len(anchors))
    starts = np.array([anchors[index * len(anchors) // count] for index in range(count)])
    found: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    place = 0
    for each, values in zip(numbers.polynomial, numbers.values, strict=True):
        stretch = int(np.searchsorted(starts, each.step, side="right"))
        for index in range(len(values)):
            found.setdefault((stretch, each.order, index), []).append((each.step, place))
            place += 1
    return [Shift(places[0][0], tuple(place for _, place in places)) for places in found.values()]


def _shifted(numbers: Numbers, amounts: Iterable[tuple[Shift, float]]) -> Numbers:
    flat = numbers.flat()
    for shift, amount in amounts:
        flat[list(shift.places)] += amount
    return numbers.with_flat(flat)


def _slopes(
    run: PlannedRun, numbers: Numbers, shifts: Sequence[Shift], difference: float
) -> tuple[Floats, Floats, Floats]:
    """Run the generations, and from the first step of each shift on once more with it.

    Returns:
        What the last samples are off, relative, float64 [samples]; the sketch of that, float64 [samples, K]; and how it
        changes with each shift, float64 [shifts, samples, K].
    """
    sketch = Sketch(LENGTH)
    weights = by_step(numbers.weights())
    ends: dict[Shift, Floats] = {}
    for step in range(run.plan.steps):
        for shift in shifts:
            if shift.first == step:
                shifted = by_step(_shifted(numbers, [(shift, difference)]).weights())
                ends[shift] = np.concatenate([sketch(branch.end(shifted)) for branch in run.branches()])
        if step < run.plan.steps - 1:
            run.take_step(weights.get(step))
    last = run.end(weights)
    off = sketch(last)
    return norms(last), off, np.stack([(ends[shift] - off) / difference for shift in shifts])


def chosen_amounts(off: Floats, slopes: Floats) -> Floats | None:
    """Return the step of Gauss-Newton that makes the mean norm small, with the ridge that is best for samples left out.

    The mean of norms is that of squares with each sample over the root of its own norm, as in iteratively reweighted
    least squares. Each sample is left out once; how far off it is then follows from the slopes. They must come closer
    in the mean by more than its standard error.

    Args:
        off: Float64 [samples, values].
        slopes: Float64 [shifts, samples, values].

    Returns:
        Float64 [shifts]; None where samples that are left out come no closer, nothing is off, or a value is not finite.
    """
    sizes = np.linalg.norm(off, axis=1)
    if not np.isfinite(slopes).all() or not np.isfinite(sizes).all() or not sizes.any():
        return None
    weights = 1 / np.maximum(sizes, LEAST * sizes.mean())
    normal = np.einsum("asv,bsv,s->sab", slopes, slopes, weights, optimize=True)
    pull = np.einsum("asv,sv,s->sa", slopes, off, weights, optimize=True)
    all_normal, all_pull = normal.sum(0), pull.sum(0)

    def left_out(ridge: float) -> Floats:
        steps = [_solved(all_normal - own, all_pull - its, ridge) for own, its in zip(normal, pull, strict=True)]
        ends = [start + step @ slopes[:, sample] for sample, (start, step) in enumerate(zip(off, steps, strict=True))]
        found: Floats = np.linalg.norm(ends, axis=1)
        return found

    gains = {ridge: sizes - left_out(ridge) for ridge in RIDGES}
    best = max(RIDGES, key=lambda ridge: float(gains[ridge].mean()))
    chance = gains[best].std(ddof=1) / np.sqrt(len(sizes))
    return _solved(all_normal, all_pull, best) if gains[best].mean() > chance else None


def _solved(normal: Floats, pull: Floats, ridge: float) -> Floats:
    held = ridge * float(np.trace(normal)) / len(normal)
    found: Floats = np.linalg.lstsq(normal + held * np.eye(len(normal)), pull, rcond=None)[0].astype(np.float64)
    return -found
