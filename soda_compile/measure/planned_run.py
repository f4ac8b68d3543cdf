"""Recorded generations run again under a plan, all of them together, a step at a time."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from soda_compile.errors import PlanError
from soda_compile.measure.gram import Floats
from soda_compile.measure.player import Kept, Player, Weights, playing
from soda_compile.measure.recording import Recording
from soda_compile.plans.plan import Plan


@dataclass(eq=False)
class PlannedRun:
    """Generations under way under a plan.

    Attributes:
        player: Runs the denoiser.
        recording: The original generations.
        plan: The plan.
        step: Number of the step that is due.
        samples: The sample of each generation before it.
        schedulers: Of each generation.
        kept: Kept values by generation and call.
    """

    player: Player
    recording: Recording
    plan: Plan
    step: int
    samples: list[torch.Tensor]
    schedulers: list[Any]
    kept: list[tuple[Kept, ...]]

    @classmethod
    def begin(cls, player: Player, recording: Recording, plan: Plan) -> "PlannedRun":
        """Begin at the first step, from the recorded samples.

        Raises:
            PlanError: If the plan has another number of steps than the recording.
        """
        if plan.steps != recording.steps:
            raise PlanError(f"the plan has {plan.steps} steps, but generations of {recording.steps} are recorded")
        firsts = [steps[0] for steps in recording.generations]
        return cls(
            player,
            recording,
            plan,
            0,
            [first.scheduler.sample for first in firsts],
            [first.scheduler.fresh_sampler() for first in firsts],
            [tuple(Kept() for _ in first.calls) for first in firsts],
        )

    def try_step(self, weights: Weights | None = None) -> list[torch.Tensor]:
        """Return the samples after the step that is due, without taking it; see ``Player.outputs``."""
        return self._stepped(list(map(copy.deepcopy, self.schedulers)), weights)

    def take_step(self, weights: Weights | None = None) -> None:
        """Take the step that is due."""
        self.samples = self._stepped(self.schedulers, weights)
        self.step += 1

    def _stepped(self, schedulers: Sequence[Any], weights: Weights | None) -> list[torch.Tensor]:
        found = []
        for steps, kept, sample, scheduler in zip(
            self.recording.generations, self.kept, self.samples, schedulers, strict=True
        ):
            recorded = steps[self.step]
            output = self.player.outputs(self.plan, self.step, kept, recorded, sample, weights)
            found.append(recorded.scheduler.take(scheduler, output, sample))
        return found

    def deviations(self, samples: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return what samples after the step that is due are off, over their norm, float64 [samples, values]."""
        rows = []
        for steps, sample in zip(self.recording.generations, samples, strict=True):
            wanted = steps[self.step].scheduler.following
            rows.append(relative_deviation(sample, wanted))
        return torch.cat(rows)

    def branches(self) -> Iterator["PlannedRun"]:
        """Yield each generation to go on from here by itself, so that values of one alone are kept twice at once."""
        parts = zip(self.recording.generations, self.samples, self.schedulers, self.kept, strict=True)
        for generation, sample, scheduler, kept in parts:
            alone = replace(self.recording, generations=(generation,))
            own = [tuple(each.apart() for each in kept)]
            yield replace(self, recording=alone, samples=[sample], schedulers=[copy.deepcopy(scheduler)], kept=own)

    def end(self, weights: Mapping[int, Weights] | None = None) -> torch.Tensor:
        """Take all steps that are left but the last, and return what the last samples are off, as ``deviations`` does.

        Args:
            weights: By step, instead of the plan's fitted weights.
        """
        weights = weights or {}
        while self.step < self.plan.steps - 1:
            self.take_step(weights.get(self.step))
        return self.deviations(self.try_step(weights.get(self.step)))

    def finish(self, weights: Mapping[int, Weights] | None = None) -> Floats:
        """Take all steps that are left, and return how far the last samples are off, float64 [samples]; see ``end``."""
        return norms(self.end(weights))


def relative_deviation(sample: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return what each sample is off over the norm of the wanted one, float64 [samples, values], on the host."""
    wanted = wanted.double().flatten(1)
    off: torch.Tensor = (sample.double().flatten(1) - wanted) / torch.linalg.vector_norm(wanted, dim=1, keepdim=True)
    return off.cpu()


def norms(deviations: torch.Tensor) -> Floats:
    """Return the norm of each row, float64 [samples]."""
    found: Floats = deviations.norm(dim=1).numpy()
    return found


@dataclass(frozen=True, eq=False)
class Compared:
    """How far plans take generations from the original.

    Attributes:
        errors: By name of the plan, relative L2 of the last sample, float64 [samples].
        denoiser_calls: Cost of comparing, in denoiser calls of the original with one batch.
    """

    errors: Mapping[str, Floats]
    denoiser_calls: float

    @property
    def best(self) -> str:
        """Name of the plan with the smallest mean."""
        return min(self.errors, key=lambda name: float(self.errors[name].mean()))

    def __str__(self) -> str:
        means = sorted((float(values.mean()), name) for name, values in self.errors.items())
        return ", ".join(f"{name} {mean:.2%}" for mean, name in means)


def compare(recording: Recording, plans: Mapping[str, Plan]) -> Compared:
    """Run recorded generations again under each of some plans, and see which stays closest to the original.

    Args:
        recording: Of ``record``.
        plans: By name.

    Raises:
        PlanError: If a plan does not fit.
        SensitivityError: If the generations cannot be run again.
    """
    with playing(recording) as player:
        before = player.computed_share
        errors = {name: PlannedRun.begin(player, recording, plan).finish() for name, plan in plans.items()}
    return Compared(errors, player.computed_share - before)
