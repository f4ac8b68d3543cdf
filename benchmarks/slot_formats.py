"""What rounding kept values costs in closeness, on trained models, at one mask of computed steps.

python -m benchmarks.slot_formats --models digits,fashion_dit

The first three steps and every fourth after them compute everything; between them all regions reuse or forecast, from a
slot each or from one slot for all. Each error is set against that of the same plan with unrounded slots, sample by
sample. Nothing is chosen or fitted, so that no calibration has a part in it. Rewritten graphs run operator by operator,
without Inductor. Results of other models in the file are kept.
"""

import os
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer

os.environ.setdefault("SODA_COMPILE_LOWERING", "eager")

import soda_compile
from benchmarks.leaderboard.models import MODELS, models_named
from benchmarks.leaderboard.subject import Subject
from benchmarks.paired import keep, paired_ratio, spread
from soda_compile.measure.gram import Floats
from soda_compile.plans.actions import COMPUTE, FORECAST1, FORECAST2, REUSE, Action
from soda_compile.plans.plan_file import SlotDtype, Slots

WARM_UP, INTERVAL = 3, 4
ACTIONS = (REUSE, FORECAST1, FORECAST2)
FORMATS: tuple[SlotDtype | None, ...] = (None, *get_args(SlotDtype))
Kind = tuple[str, Slots, SlotDtype | None]


def row(stale: Action, steps: int) -> tuple[Action, ...]:
    """Return what a region does at each step."""
    return tuple(COMPUTE if step < WARM_UP or (step - WARM_UP + 1) % INTERVAL == 0 else stale for step in range(steps))


def plans(fingerprint: str, regions: tuple[str, ...], steps: int) -> dict[Kind, soda_compile.Plan]:
    """Return plans by action of stale steps, by whether regions share one slot, and by format."""
    return {
        (str(action), slots, slot_dtype): soda_compile.Plan(
            fingerprint, regions, (row(action, steps),) * len(regions), slots=slots, slot_dtype=slot_dtype
        )
        for action, slots, slot_dtype in product(ACTIONS, get_args(Slots), FORMATS)
    }


def measure(subject: Subject, samples: int) -> list[dict[str, Any]]:
    """Return a row for each kind of plan, scored on the generations of the first seeds."""

    def generate(seed: int) -> torch.Tensor:
        return subject.run(subject.pipe, range(seed, seed + samples), subject.steps)

    recording = soda_compile.record(subject.pipe, generate, generations=1)
    call = recording.generations[0][0].calls[0]
    found = soda_compile.inspect(subject.pipe.transformer, *call.arguments, **call.options)
    made = plans(found.fingerprint, found.region_names, recording.steps)
    errors = soda_compile.compare(recording, {"|".join(map(str, kind)): plan for kind, plan in made.items()}).errors
    by_kind = dict(zip(made, errors.values(), strict=True))
    return [
        {"action": kind[0], "slots": kind[1], "slot_dtype": kind[2], **score(error, by_kind[(*kind[:2], None)])}
        for kind, error in by_kind.items()
    ]


def score(error: Floats, unrounded: Floats) -> dict[str, float]:
    """Return how far a plan is off, and over that with unrounded slots."""
    ratio, standard_error = paired_ratio(error, unrounded)
    return {**spread(error), "ratio": ratio, "ratio_standard_error": standard_error}


def text(report: Mapping[str, Any]) -> str:
    """Return a table for each model."""
    lines = [
        "# Rounded slots",
        "",
        "Relative L2 of the last sample to the original's; in brackets the error over that with unrounded slots",
        "(float32), paired by sample (geometric mean, one standard error). The first three of 50 steps and every",
        "fourth after them compute everything. int8 and float8 (e4m3) have a scale for each row.",
        "`python -m benchmarks.slot_formats`.",
    ]
    for found in report.values():
        formats = [each or "unrounded" for each in FORMATS]
        lines += ["", f"## {found['title']}", "", f"Seeds {found['seeds']}, torch {found['torch']}.", ""]
        lines += [f"| slots | stale steps | {' | '.join(formats)} |", "|---" * (2 + len(formats)) + "|"]
        for slots, action in product(get_args(Slots), dict.fromkeys(each["action"] for each in found["rows"])):
            cells = [cell(each) for each in found["rows"] if (each["slots"], each["action"]) == (slots, action)]
            name = "one for each region" if slots == "region" else "one for all"
            lines.append(f"| {name} | {action} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def cell(found: Mapping[str, Any]) -> str:
    """Return what a table says of a plan."""
    if found["slot_dtype"] is None:
        return f"{found['relative_l2_mean']:.2%}"
    return f"{found['relative_l2_mean']:.2%} ({found['ratio']:.3f} ± {found['ratio_standard_error']:.3f})"


def main(
    models: Annotated[str, typer.Option(help="Names, with commas.")] = ",".join(MODELS),
    samples: Annotated[int, typer.Option(min=2, help="Seeds, in one batch.")] = 40,
    out: Path = Path("benchmarks/results/slot_formats.json"),
) -> None:
    """Score every format on each model."""
    torch.set_num_threads(1)
    for name in models_named(models):
        started = time.perf_counter()
        subject = MODELS[name]("cpu")
        found = measure(subject, samples)
        about = {"title": subject.title, "seeds": f"0 to {samples - 1}", "torch": torch.__version__}
        keep(out, name, {**about, "rows": found}, text)
        typer.echo(f"{name}: {time.perf_counter() - started:.0f} s", err=True)


if __name__ == "__main__":
    typer.run(main)
