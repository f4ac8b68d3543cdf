"""How close the plans of one line come, with plans being tried (the default) and without, and what measuring costs.

python -m benchmarks.default_plans --models digits,fashion_dit

As ``accelerate`` does it: a few generations of one sample are measured; others are recorded, intervals simulated from
them, the strategies' plans run on them, and weights fitted, unless ``closest`` is 0. Both are scored on fresh seeds at
equal numbers of computed steps, beside second-order forecasts. Rewritten graphs run operator by operator, without
Inductor. Results of other models in the file are kept.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

os.environ.setdefault("SODA_COMPILE_LOWERING", "eager")

import soda_compile
from benchmarks.leaderboard.models import MODELS, models_named
from benchmarks.leaderboard.subject import CALIBRATION, Subject
from benchmarks.paired import keep, paired_ratio, spread
from soda_compile.acceleration.trying import TRIED

BEFORE, AFTER, FORECAST2 = "not tried", "tried and fitted", "forecast2"


def measure(subject: Subject, anchors: list[int], samples: int, measured: int, tried: int) -> dict[str, Any]:
    """Return what was measured for a model: costs, and a row for each plan."""

    def generate(first: int, count: int) -> torch.Tensor:
        return subject.run(subject.pipe, range(first, first + count), subject.steps)

    generate(CALIBRATION, 1)
    clock = Clock()
    generate(CALIBRATION, 1)
    generation = clock.lap()
    # In one batch: one by one is the same arithmetic, and in small models more of the interpreter's time.
    recording = soda_compile.record(
        subject.pipe, lambda seed: generate(CALIBRATION + seed, tried), generations=1, first_seed=measured
    )
    recorded = clock.lap()
    scored = soda_compile.record(subject.pipe, lambda seed: generate(seed, samples), generations=1)
    rows, by_reach = [], dict[int, tuple[soda_compile.Sensitivity, dict[str, float]]]()
    for count in anchors:
        reach = soda_compile.Goal(anchors=count).reach(subject.steps)
        if reach not in by_reach:
            clock.lap()
            sensitivity = soda_compile.calibrate(
                subject.pipe,
                lambda seed: generate(CALIBRATION + seed, 1),
                generations=measured,
                max_interval=reach,
            )
            measuring = clock.lap()
            simulated = soda_compile.simulate(recording, sensitivity)
            seconds = {"measuring_seconds": measuring, "simulating_seconds": recorded + clock.lap()}
            by_reach[reach] = simulated, seconds
        simulated, seconds = by_reach[reach]
        rows += [{**row, **seconds} for row in scores(simulated, recording, scored, count)]
    return {
        "title": subject.title,
        "seeds": f"0 to {samples - 1}",
        "measured_on": f"{measured} seeds from {CALIBRATION} on",
        "tried_on": f"the {tried} after them",
        "torch": torch.__version__,
        "steps": subject.steps,
        "generation_seconds": generation,
        "rows": rows,
    }


class Clock:
    """Processor time of laps."""

    def __init__(self) -> None:
        self.last = time.process_time()

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        before, self.last = self.last, time.process_time()
        return self.last - before


def scores(
    sensitivity: soda_compile.Sensitivity,
    tried_on: soda_compile.Recording,
    scored: soda_compile.Recording,
    anchors: int,
) -> list[dict[str, Any]]:
    """Return a row for each plan with so many computed steps."""
    clock = Clock()
    closest = soda_compile.closest_plan(tried_on, sensitivity, anchors=anchors)
    seconds = clock.lap()
    forecast2 = soda_compile.AnchorSchedule(operator="forecast2")
    plans = {
        BEFORE: soda_compile.plan(sensitivity, anchors=anchors),
        FORECAST2: soda_compile.plan(sensitivity, anchors=anchors, strategy=forecast2),
        AFTER: closest.plan,
    }
    errors = soda_compile.compare(scored, plans).errors
    return [
        {
            "anchors": anchors,
            "plan": name,
            "strategy": closest.name if name == AFTER else None,
            "trying_seconds": seconds if name == AFTER else None,
            **spread(error),
            **{f"ratio to {other}": paired_ratio(error, errors[other]) for other in (BEFORE, FORECAST2)},
        }
        for name, error in errors.items()
    ]


def text(report: Mapping[str, Any]) -> str:
    """Return the table of all models, and what measuring costs."""
    ratios = [row[f"ratio to {BEFORE}"][0] for each in report.values() for row in each["rows"] if row["plan"] == AFTER]
    lines = [
        "# Plans of one line",
        "",
        "Relative L2 of the last sample to the original's, fresh seeds; ratios paired by sample (geometric mean, one",
        "standard error). Tried and fitted: as `accelerate` does it by default, here with the samples that plans are",
        "tried on in one batch; not tried: with `closest=0`. `python -m benchmarks.default_plans`.",
        "",
        "| model | computed steps | plan | mean | 95th percentile | to not tried | to forecast2 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in report.items():
        for row in found["rows"]:
            strategy = f": {row['strategy']}" if row["strategy"] else ""
            lines.append(
                f"| {name} | {row['anchors']} of {found['steps']} | {row['plan']}{strategy} | "
                f"{row['relative_l2_mean']:.2%} | {row['relative_l2_p95']:.2%} | "
                f"{ratio(row[f'ratio to {BEFORE}'])} | {ratio(row[f'ratio to {FORECAST2}'])} |"
            )
    lines += [
        "",
        f"Tried and fitted, over not tried: geometric mean {np.exp(np.mean(np.log(ratios))):.2f}, largest "
        f"{max(ratios):.2f}.",
        "",
        "Cost, in seconds of one CPU thread, and in generations of one sample, before (measuring) and after (all).",
        "What is tried runs in one batch: one by one is the same arithmetic, and in models as small as these several",
        "times as much of the interpreter's time.",
        "",
        "| model | computed steps | a generation | measuring | simulating | trying and fitting | before | after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    tried = [cost(name, found, row) for name, found in report.items() for row in found["rows"] if row["plan"] == AFTER]
    return "\n".join([*lines, *tried, ""])


def cost(name: str, found: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Return the line of what making a plan cost."""
    one, before = found["generation_seconds"], row["measuring_seconds"]
    simulating, trying = row["simulating_seconds"], row["trying_seconds"]
    after = before + simulating + trying
    steps = f"{row['anchors']} of {found['steps']}"
    seconds = f"{one:.2f} | {before:.0f} | {simulating:.0f} | {trying:.0f}"
    return f"| {name} | {steps} | {seconds} | {before / one:.0f} | {after / one:.0f} |"


def ratio(found: tuple[float, float]) -> str:
    """Return a ratio with its standard error."""
    return f"{found[0]:.2f} ± {found[1]:.2f}"


def main(
    models: Annotated[str, typer.Option(help="Names, with commas.")] = ",".join(MODELS),
    anchors: Annotated[str, typer.Option(help="Numbers of computed steps, with commas.")] = "8,12,18",
    samples: Annotated[int, typer.Option(min=2, help="Fresh seeds, in one batch.")] = 100,
    measured: Annotated[int, typer.Option(min=1, help="Generations to measure, one sample each.")] = 4,
    tried: Annotated[int, typer.Option(min=1, help="Other samples, to try plans on.")] = TRIED,
    out: Path = Path("benchmarks/results/default_plans.json"),
) -> None:
    """Score what one line plans for each model."""
    torch.set_num_threads(1)
    counts = [int(count) for count in anchors.split(",")]
    for name in models_named(models):
        keep(out, name, measure(MODELS[name]("cpu"), counts, samples, measured, tried), text)
        typer.echo(f"{name} done", err=True)


if __name__ == "__main__":
    typer.run(main)
