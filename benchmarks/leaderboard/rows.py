"""Makes the rows of one method on one model: tunes it on calibration seeds, and scores it on others."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.leaderboard import fewer_steps, ours
from benchmarks.leaderboard.cache_dit_rows import CACHE_DIT
from benchmarks.leaderboard.installed import Installed
from benchmarks.leaderboard.measures import frechet, reference, scores
from benchmarks.leaderboard.method import Method
from benchmarks.leaderboard.rules import RULES
from benchmarks.leaderboard.subject import CALIBRATION, Subject
from benchmarks.leaderboard.their_code import DIFFUSERS
from benchmarks.leaderboard.trial import clock, relative, run, seconds
from benchmarks.leaderboard.tuning import Setting, Tuner, reason

Row = dict[str, Any]


@dataclass(frozen=True)
class Scoring:
    """How rows are scored.

    Attributes:
        samples: Fresh seeds, from 0 on.
        calibration: Other seeds that methods are calibrated and tuned on.
        frechet: Samples of the Fréchet distance; 0 for none.
        frechet_costs: Budgets it is measured at.
        folder: For what processes of this run share.
        timed: Samples of the generation that is timed.
        deadline: Time (``time.time()``) after which no row is begun.
    """

    samples: int
    calibration: int
    frechet: int
    frechet_costs: tuple[float, ...]
    folder: str
    timed: int
    deadline: float


def peers(subject: Subject) -> dict[str, Method]:
    """All methods but ours, by name."""
    return {each.name: each for each in (*RULES, *fewer_steps.methods(subject), *CACHE_DIT, *DIFFUSERS)}


def rows_of(subject: Subject, name: str, costs: Sequence[float], scoring: Scoring) -> Iterator[Row]:
    """Rows of a method, each as soon as it is done; one that fails has a reason."""
    if name in ours.OURS:
        yield from _rows_of_ours(subject, name, costs, scoring)
    else:
        yield from _rows_of_peer(subject, peers(subject)[name], costs, scoring)


def _rows_of_ours(subject: Subject, name: str, costs: Sequence[float], scoring: Scoring) -> Iterator[Row]:
    source, make = ours.OURS[name]
    kind = "rule" if name.startswith("SODA") else "ours"
    for cost in costs:
        row = _row(subject, name, kind, source, cost)

        def install(row: Row = row, cost: float = cost) -> Installed:
            found = make(ours.Measured(subject, Path(scoring.folder), scoring.calibration), cost)
            row |= {"setting": found.text, "calibration_seconds": found.seconds}
            return ours.install(found, subject)

        yield _scored(subject, row, install, scoring)


def _rows_of_peer(subject: Subject, method: Method, costs: Sequence[float], scoring: Scoring) -> Iterator[Row]:
    seeds = range(CALIBRATION, CALIBRATION + scoring.calibration)
    wanted = reference(subject, seeds[0], len(seeds))
    tuning = 0.0  # seconds; settings that were tried for one budget serve the next

    def evaluate(setting: Setting) -> tuple[float, float]:
        _in_time(scoring)
        installed = setting.install(subject)
        try:
            trial = run(subject, installed, seeds, wanted.flops)
        finally:
            installed.close()
        return trial.cost, float(relative(trial.latents, wanted.latents).mean())

    tuner = Tuner(evaluate)
    for cost in costs:
        row = _row(subject, method.name, method.kind, method.source, cost)

        def install(row: Row = row, cost: float = cost) -> Installed:
            nonlocal tuning
            started = clock(subject)
            found = tuner.best(method.searches(subject, seeds), cost)
            tuning += clock(subject) - started
            row |= {"calibration_seconds": tuning, "settings_tried": len(tuner.tried)}
            if found is None:
                raise NotImplementedError(tuner.why_none())
            row |= {"setting": found.setting.text, "tuned_cost": found.cost, "tuned_error": found.error}
            installed: Installed = found.setting.install(subject)
            return installed

        yield _scored(subject, row, install, scoring)


def _row(subject: Subject, name: str, kind: str, source: str, cost: float) -> Row:
    return {"model": subject.name, "method": name, "kind": kind, "source": source, "budget": cost}


def _scored(subject: Subject, row: Row, install: Callable[[], Installed], scoring: Scoring) -> Row:
    """The row with its scores, or with the reason why there are none."""
    try:
        _in_time(scoring)
        installed = install()
        try:
            row |= _measured(subject, installed, scoring, row["budget"])
        finally:
            installed.close()
    except Exception as error:
        row["reason"] = reason(error)
    return row


def _measured(subject: Subject, installed: Installed, scoring: Scoring, budget: float) -> Row:
    many = scoring.frechet if budget in scoring.frechet_costs else 0
    wanted = reference(subject, 0, max(scoring.samples, many))
    trial = run(subject, installed, range(max(scoring.samples, many)), wanted.flops)
    found: Row = {"cost": trial.cost, "held_bytes": trial.held_bytes}
    found |= scores(subject, wanted, trial, scoring.samples)
    if many:
        found["frechet"] = frechet(subject, trial, many)
    found["seconds"] = seconds(subject, installed, range(scoring.timed)) if scoring.timed else None
    return found


def _in_time(scoring: Scoring) -> None:
    if time.time() > scoring.deadline:
        raise NotImplementedError("out of time")
