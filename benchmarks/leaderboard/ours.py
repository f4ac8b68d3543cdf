"""Plans of ours, and the paper's schedule, each made for a budget of FLOPs on calibration seeds."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import soda_compile
from benchmarks.leaderboard.installed import Installed
from benchmarks.leaderboard.subject import CALIBRATION, Subject
from benchmarks.leaderboard.trial import clock
from soda_compile.measure.recording import Recording
from soda_compile.planner import Strategy
from soda_compile.storage.lock import locked

GENERATIONS = 2
SECONDS = "leaderboard_seconds"
SPACINGS = (1, 4, 8, 15)  # those within what is measured
REUSE: dict[str, Strategy] = {
    "reuse": soda_compile.AnchorSchedule(operator="reuse"),
    "fixed interval, reuse": soda_compile.FixedInterval(operator="reuse"),
}


@dataclass(frozen=True, eq=False)
class Measured:
    """What is measured once for a subject, by whichever process of a run needs it first.

    Attributes:
        subject: The subject.
        folder: Where the processes of this run share it.
        samples: Of the recording, and of each generation that calibrates.
    """

    subject: Subject
    folder: Path
    samples: int

    def recording(self) -> Recording:
        """The original on the calibration seeds."""
        return _recording(self.subject, self.samples)

    def sensitivity(self, goal: soda_compile.Goal, simulated: bool = False) -> tuple[soda_compile.Sensitivity, float]:
        """The sensitivity for a goal, with simulated intervals or without, and the seconds that measuring it took."""
        reach = goal.reach(self.subject.steps)
        plain, before = self._kept(f"calibrated-{reach}", lambda: (self._calibrate(reach), 0.0))
        if not simulated:
            return plain, before
        return self._kept(f"simulated-{reach}", lambda: (self._simulate(plain), before))

    def _calibrate(self, reach: int) -> soda_compile.Sensitivity:
        generate = _generate(self.subject, self.samples)
        return soda_compile.calibrate(self.subject.pipe, generate, generations=GENERATIONS, max_interval=reach)

    def _simulate(self, plain: soda_compile.Sensitivity) -> soda_compile.Sensitivity:
        return soda_compile.simulate(self.recording(), plain, spacings=SPACINGS)

    def _kept(
        self, name: str, make: Callable[[], tuple[soda_compile.Sensitivity, float]]
    ) -> tuple[soda_compile.Sensitivity, float]:
        path = self.folder / f"{self.subject.name}.{name}"
        with locked(self.folder, path.name, lambda: None):
            if not path.exists():
                started = clock(self.subject)
                found, before = make()
                spent = clock(self.subject) - started + before
                notes = {**found.info.notes, SECONDS: f"{spent:.1f}"}
                replace(found, info=replace(found.info, notes=notes)).save(path)
        loaded = soda_compile.Sensitivity.load(path)
        return loaded, float(loaded.info.notes[SECONDS])


def _generate(subject: Subject, samples: int) -> Callable[[int], Any]:
    def generate(number: int) -> Any:
        first = CALIBRATION + samples * number
        return subject.run(subject.pipe, range(first, first + samples), subject.steps)

    return generate


@lru_cache(maxsize=4)
def _recording(subject: Subject, samples: int) -> Recording:
    return soda_compile.record(subject.pipe, _generate(subject, samples), generations=1)


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan for a budget, what it is, and what making it took beyond the calibration of the model, in seconds."""

    plan: soda_compile.Plan
    text: str
    seconds: float


def _planned(strategy: Strategy) -> Callable[[Measured, float], Planned]:
    def make(found: Measured, cost: float) -> Planned:
        goal = soda_compile.Goal(speedup=1 / cost)
        sensitivity, spent = found.sensitivity(goal)
        plan = soda_compile.plan(sensitivity, goal, strategy)
        return Planned(plan, f"{len(plan.anchors)} anchors", spent)

    return make


def _closest(strategies: dict[str, Strategy] | None, simulated: bool) -> Callable[[Measured, float], Planned]:
    def make(found: Measured, cost: float) -> Planned:
        goal = soda_compile.Goal(speedup=1 / cost)
        sensitivity, spent = found.sensitivity(goal, simulated)
        started = clock(found.subject)
        closest = soda_compile.closest_plan(found.recording(), sensitivity, goal, strategies=strategies)
        fitted = "fitted" if closest.fit is not None and closest.fit.fitted_steps else "not fitted"
        text = f"{closest.name}, {fitted}, {len(closest.plan.anchors)} anchors"
        return Planned(closest.plan, text, spent + clock(found.subject) - started)

    return make


OURS: dict[str, tuple[str, Callable[[Measured, float], Planned]]] = {
    "ours, closest": ("simulated intervals, candidates tried, fitted weights", _closest(None, True)),
    "ours, not tried": ("forecasts of order 1, dynamic programming", _planned(soda_compile.AnchorSchedule())),
    "ours, low memory": ("reuse alone: one kept value, fitted weights", _closest(REUSE, False)),
    "SODA, OFS+DCS": ("arXiv 2603.07057, the paper's schedule", _planned(soda_compile.PaperSchedule())),
}


def install(planned: Planned, subject: Subject) -> Installed:
    """Accelerate a pipeline by a plan; its cost holds only where every call followed the plan."""
    pipe = subject.fresh()
    torch._dynamo.reset()  # it compiles one piece of code for so many models only
    soda_compile.accelerate(pipe, planned.plan)

    def cost() -> float:
        [found] = soda_compile.stats(pipe).values()
        if sum(found["misses"].values()) or found["calls"] % subject.steps:
            raise RuntimeError(f"calls left the plan: {found['misses']}, {found['reasons']}")
        kinds = [action.kind for row in planned.plan.actions for action in row]
        generations = found["calls"] // subject.steps
        for kind in set(kinds):
            if found["regions"].get(kind, 0) != generations * kinds.count(kind):
                raise RuntimeError(f"regions that {kind}: {found['regions']}, planned {kinds.count(kind)}")
        return float(planned.plan.flop_ratio or 1.0)

    def held() -> int:
        return int(sum(each["slot_bytes_peak"] for each in soda_compile.stats(pipe).values()))

    return Installed(pipe, subject.steps, held_bytes=held, cost=cost, close=lambda: soda_compile.restore(pipe))
