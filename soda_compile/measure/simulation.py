"""Measures what whole intervals cost by running their stale steps, from the true states of recorded generations."""

import copy
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from soda_compile.errors import OptionError
from soda_compile.measure.gram import Floats
from soda_compile.measure.planned_run import norms, relative_deviation
from soda_compile.measure.player import Kept, Player, playing
from soda_compile.measure.recording import RecordedStep, Recording
from soda_compile.measure.sketch import Sketch, sketch_for
from soda_compile.plans.actions import COMPUTE, FORECAST1, FORECAST2, REUSE
from soda_compile.plans.fitted_weights import FittedWeights
from soda_compile.plans.interval_errors import IntervalErrors
from soda_compile.plans.interval_vectors import IntervalVectors, Vector
from soda_compile.plans.operators import OPERATORS
from soda_compile.plans.over_samples import WORST
from soda_compile.plans.plan import Plan
from soda_compile.plans.sensitivity import Sensitivity
from soda_compile.storage.progress import progress_bar

SPACINGS = (1, 2, 3, 5, 8, 13, 20)
GROWTH_PLACES = 4
ORDERS = 3
# Three anchors, then one stale step of each order: the code of all that is run.
_ROW = (COMPUTE, COMPUTE, COMPUTE, REUSE, FORECAST1, FORECAST2)
_NEWEST = 2  # the place among three of a value that was kept last


def simulate(
    recording: Recording,
    sensitivity: Sensitivity,
    *,
    spacings: Sequence[int] = SPACINGS,
    lengths: int | None = None,
    memory_bytes: int | None = None,
) -> Sensitivity:
    """Return a sensitivity with the errors of simulated intervals, for the strategy ``SimulatedSchedule``.

    From the true state after an anchor, an interval's stale steps are run with the scheduler's own step. What the
    sample is then off counts times how much an error there grows to the end, which is measured at a few steps by
    running the original on. Costs one generation for the kept values, two for the growth, and of stale steps, which
    compute little but the ends of the model, about ``steps * lengths * (1 + 2 * len(spacings))`` for each generation.
    Kept values of up to ``2 + 2 * max(spacings)`` steps are in memory at once.

    Args:
        recording: Of ``record``: generations of the setting that was measured.
        sensitivity: Of ``calibrate``.
        spacings: Distances of anchors that are run; those between are interpolated. Beyond ``lengths`` none is run.
        lengths: Longest age of a kept value in steps; by default the sensitivity's ``max_interval``.
        memory_bytes: Bound on the memory of kept values; the widest spacings are left out for it.

    Raises:
        OptionError: If the recording has other steps, numbers make no sense, or no spacing fits the memory.
        SensitivityError: If the generations cannot be run again.
    """
    width = sensitivity.info.max_interval if lengths is None else lengths
    if recording.steps != sensitivity.info.steps:
        raise OptionError(
            f"{recording.steps} steps are recorded, but {sensitivity.info.steps} were measured; record that schedule"
        )
    if not 1 <= width <= sensitivity.info.max_interval or not spacings or min(spacings) < 1:
        raise OptionError(
            f"lengths={width} must lie between 1 and max_interval, {sensitivity.info.max_interval}, and spacings, "
            f"{tuple(spacings)}, from 1 on"
        )
    started = time.perf_counter()
    measured = tuple(sorted(each for each in set(spacings) if each <= width + 1))
    plan = _plan(sensitivity)
    sketch = sketch_for(sum(len(steps[0].scheduler.sample) for steps in recording.generations))
    found = []
    with playing(recording) as player, progress_bar() as progress:
        share = player.computed_share
        if memory_bytes is not None:
            one = kept_bytes(_Simulation(player, plan, recording.generations[0], width, measured, sketch).computed(0))
            measured = fitting(measured, one, memory_bytes)
        for steps in progress.track(recording.generations, description="simulating"):
            found.append(_Simulation(player, plan, steps, width, measured, sketch).run())
    rows, vectors = map(np.concatenate, zip(*found, strict=True))
    table = _between_spacings(rows.mean(axis=0), measured)
    worst = _between_spacings(np.quantile(rows, WORST, axis=0), measured)
    notes = {
        **sensitivity.info.notes,
        "intervals": f"{player.computed_share - share:.0f} denoiser calls, {time.perf_counter() - started:.0f} s",
    }
    return replace(
        sensitivity,
        info=replace(sensitivity.info, notes=notes),
        intervals=IntervalErrors(
            table.astype(np.float32),
            len(rows),
            worst.astype(np.float32),
            IntervalVectors.pack(np.moveaxis(vectors, 0, 4), measured),
        ),
    )


def fitting(spacings: Sequence[int], one: int, memory_bytes: int) -> tuple[int, ...]:
    """Return the spacings for which the kept values of all steps that are in memory at once fit.

    Args:
        spacings: Ascending.
        one: Bytes that one step keeps.
        memory_bytes: The bound.

    Raises:
        OptionError: If none fits.
    """
    found = tuple(each for each in spacings if (2 + 2 * each) * one <= memory_bytes)
    if not found:
        least = (2 + 2 * min(spacings)) * one
        raise OptionError(
            f"memory_bytes={memory_bytes} holds no simulation: what one step keeps takes {one} bytes, and "
            f"{least} are needed; record fewer samples in a generation, or leave simulated intervals out"
        )
    return found


def kept_bytes(kept: Sequence[Kept]) -> int:
    """Return the memory of what the calls of a step keep."""
    return sum(
        own.registers[register].nbytes
        for own in kept
        if own.program is not None
        for register in own.program.slot_keys
        if isinstance(own.registers[register], torch.Tensor)
    )


def _plan(sensitivity: Sensitivity) -> Plan:
    """Return the plan whose steps are run, with weights that are set for each."""
    weights = [
        FittedWeights(_NEWEST + 1 + each.order, each.order, each.coefficients([2, 1, 0][: each.history], 3))
        for each in OPERATORS[1:ORDERS]
    ]
    info = sensitivity.info
    return Plan(info.fingerprint, info.regions, (_ROW,) * len(info.regions), weights=tuple(weights))


@dataclass(eq=False)
class _Simulation:
    """One generation.

    Attributes:
        player: Runs the denoiser.
        plan: Of ``_plan``.
        steps: The recorded generation.
        width: Longest age.
        spacings: Those that are run, ascending.
        sketch: Makes vectors of errors short.
        true: For the latest steps the kept values of each call.
        ends: By step, a sample that an interval which ends there led to.
    """

    player: Player
    plan: Plan
    steps: Sequence[RecordedStep]
    width: int
    spacings: Sequence[int]
    sketch: Sketch
    true: dict[int, tuple[Kept, ...]] = field(default_factory=dict)
    ends: dict[int, torch.Tensor] = field(default_factory=dict)

    def run(self) -> tuple[Floats, Vector]:
        """Return what intervals leave in the last sample; NaN where there is none.

        Returns:
            The squared errors, float64 [samples, orders, steps, spacings, lengths], and sketches of the errors, float32
            [samples, orders, steps, spacings that are run, lengths, K].
        """
        count, size = len(self.steps), self.width + 2
        samples = len(self.steps[0].scheduler.sample)
        table = np.full((samples, ORDERS, count, size, size), np.nan)
        shape = (samples, ORDERS, count, len(self.spacings), size, self.sketch.length)
        vectors = np.full(shape, np.nan, dtype=np.float32)
        table[..., 1], vectors[..., 1, :] = 0.0, 0.0
        reach = 2 * self.spacings[-1]
        for anchor in range(count - 1):
            self.true[anchor] = self.computed(anchor)
            self.true.pop(anchor - reach - 1, None)
            for order, spacing in self._served(anchor):
                place = self.spacings.index(spacing) if order else 0
                for length, off in enumerate(self._interval(order, anchor, spacing), 2):
                    table[:, order, anchor, spacing, length] = norms(off)
                    vectors[:, order, anchor, place, length] = self.sketch(off)
        growth = self._growth()
        for anchor in range(count):
            ends = growth[np.minimum(anchor + np.arange(size), count)]
            table[:, :, anchor] *= ends
            vectors[:, :, anchor] *= ends[:, None]
        squares: Floats = np.square(table)
        return squares, vectors

    def _served(self, anchor: int) -> list[tuple[int, int]]:
        """Return the orders and spacings whose values lie in the generation."""
        return [(0, 0)] + [
            (order, spacing) for order in range(1, ORDERS) for spacing in self.spacings if order * spacing <= anchor
        ]

    def computed(self, step: int) -> tuple[Kept, ...]:
        """Compute a step from its true state; return what it keeps, in the first of three places."""
        recorded, kept = self.steps[step], []
        for call in recorded.calls:
            own = Kept()
            self.player.call(self.plan, 0, own, (call.arguments, call.options))
            assert own.program is not None
            keys: dict[int, Any] = own.program.slot_keys
            for register, key in keys.items():
                if key[-1]:
                    own.registers[register] = None  # memory for values of other steps
            kept.append(own)
        return tuple(kept)

    def _interval(self, order: int, anchor: int, spacing: int) -> list[torch.Tensor]:
        """Return what the sample is off after 1, 2, ... stale steps, over its norm, each float64 [samples, values]."""
        kept = self._history(order, anchor, spacing)
        first = self.steps[anchor + 1].scheduler
        sample, scheduler, found = first.sample, first.fresh_sampler(), []
        sources = [anchor - age * spacing for age in range(order + 1)]
        for step in range(anchor + 1, min(anchor + 1 + self.width, len(self.steps))):
            recorded = self.steps[step]
            weights = {order: OPERATORS[order].coefficients(sources, step)} if order else {}
            output = self.player.outputs(self.plan, _NEWEST + 1 + order, kept, recorded, sample, weights)
            sample = recorded.scheduler.take(scheduler, output, sample)
            found.append(relative_deviation(sample, recorded.scheduler.following))
            if step - anchor == min(3, self.width) and order <= 1:
                self.ends[step] = sample
        return found

    def _history(self, order: int, anchor: int, spacing: int) -> list[Kept]:
        """Return for each call registers in which the kept values of some anchors are in place."""
        history = []
        for number, newest in enumerate(self.true[anchor]):
            own = newest.copy()
            for age in range(order + 1):
                source = self.true[anchor - age * spacing][number]
                _place(source, own, _NEWEST - age)
            history.append(own)
        return history

    def _growth(self) -> Floats:
        """Return how much a relative error in the sample before each step, and at the end, grows to the end, [T + 1].

        The original is run on from samples that intervals led to.
        """
        count = len(self.steps)
        wanted = np.linspace(2, count - 1, GROWTH_PLACES).round().astype(int)
        ends = [step for step in self.ends if step + 1 < count]
        nearest = {ends[int(np.abs(np.array(ends) + 1 - place).argmin())] for place in wanted if ends}
        found = {count: 1.0}
        for step in sorted(nearest):
            sample, scheduler = self.ends[step], self.steps[step + 1].scheduler.fresh_sampler()
            before = norms(relative_deviation(sample, self.steps[step].scheduler.following))
            for recorded in self.steps[step + 1 :]:
                kept = [Kept() for _ in recorded.calls]
                output = self.player.outputs(self.plan, 0, kept, recorded, sample)
                sample = recorded.scheduler.take(scheduler, output, sample)
            after = norms(relative_deviation(sample, self.steps[-1].scheduler.following))
            found[step + 1] = max(float(np.sqrt(np.square(after).mean() / np.square(before).mean())), 1e-6)
        where = sorted(found)
        return np.exp(np.interp(np.arange(count + 1), where, np.log([found[place] for place in where])))


def _place(source: Kept, target: Kept, place: int) -> None:
    """Let one of three places hold the values that a step kept in the first one."""
    assert source.program is not None
    keys: dict[int, Any] = source.program.slot_keys
    registers = {key: register for register, key in keys.items()}
    for register, (*cut, at) in keys.items():
        if at == 0:
            target.registers[registers[*cut, place]] = source.registers[register]


def _between_spacings(squares: Floats, spacings: Sequence[int]) -> Floats:
    """Fill in the spacings between those that were run, [orders, steps, spacings, lengths]."""
    filled = copy.deepcopy(squares)
    for low, high in itertools.pairwise(spacings):
        for spacing in range(low + 1, high):
            share = (spacing - low) / (high - low)
            mixed = (1 - share) * squares[:, :, low] + share * squares[:, :, high]
            # Near the beginning the wider spacing does not fit into the generation.
            filled[1:, :, spacing] = np.where(np.isnan(mixed), squares[:, :, low], mixed)[1:]
    for spacing in range(spacings[-1] + 1, squares.shape[2]):
        filled[1:, :, spacing] = squares[1:, :, spacings[-1]]
    for order, spacing in itertools.product(range(1, len(filled)), range(filled.shape[2])):
        filled[order, : order * spacing, spacing, 2:] = np.nan  # so many anchors do not fit before these
    return filled
