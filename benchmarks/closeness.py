"""How close plans stay to the original at equal FLOPs, on trained models: all strategies, slots, fitted weights.

python -m benchmarks.closeness --model digits

Plans are made and fitted on calibration seeds, and scored on others. Rewritten graphs run operator by operator, without
Inductor, which differs by rounding. The results of other models and budgets in the file are kept.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

os.environ.setdefault("SODA_COMPILE_LOWERING", "eager")

import soda_compile
from benchmarks.leaderboard.models import MODELS
from benchmarks.leaderboard.subject import CALIBRATION, Subject
from benchmarks.paired import paired_ratio, spread
from soda_compile.measure.candidates import nearest_first
from soda_compile.measure.closest import strategies_for
from soda_compile.measure.fitting import RIDGES
from soda_compile.measure.simulation import SPACINGS
from soda_compile.storage.files import write_atomic

BATCH, GENERATIONS = 10, 2  # of the sensitivity
TODAY = "today's default"
BRIEFLY = (TODAY, "forecast2", "fixed interval, reuse")


def generate(subject: Subject, first: int, count: int) -> torch.Tensor:
    """Latents of that many samples, one label and one noise for each seed."""
    return subject.run(subject.pipe, range(first, first + count), subject.steps)


def plans(sensitivity: soda_compile.Sensitivity, anchors: int) -> dict[str, soda_compile.Plan]:
    strategies = {TODAY: soda_compile.AnchorSchedule(), **strategies_for(sensitivity)}
    made = {name: soda_compile.plan(sensitivity, anchors=anchors, strategy=each) for name, each in strategies.items()}
    return {name: each for name, each in made.items() if each != made[TODAY] or name == TODAY}


def on_stack(made: dict[str, soda_compile.Plan]) -> dict[str, soda_compile.Plan]:
    """Return the same plans with one value kept for all regions."""
    return {f"{name}, one slot": replace(each, slots="stack", watched=None) for name, each in made.items()}


def measured(subject: Subject, keep: Path | None) -> soda_compile.Sensitivity:
    if keep is not None and keep.exists():
        return soda_compile.Sensitivity.load(keep)
    sensitivity = soda_compile.calibrate(
        subject.pipe, lambda seed: generate(subject, CALIBRATION + BATCH * seed, BATCH), generations=GENERATIONS
    )
    if keep is not None:
        sensitivity.save(keep)
    return sensitivity


def main(
    model: Annotated[str, typer.Option(help=f"One of {', '.join(MODELS)}.")] = "digits",
    out: Path = Path("benchmarks/results/closeness.json"),
    samples: int = 100,
    calibration_samples: Annotated[int, typer.Option(help="For simulated intervals and fitted weights.")] = 16,
    anchors: Annotated[list[int] | None, typer.Option()] = None,
    spacings: Annotated[list[int] | None, typer.Option()] = None,
    keep: Annotated[Path | None, typer.Option(help="Where the sensitivity is kept for the next run.")] = None,
    brief: Annotated[
        bool,
        typer.Option("--brief", help="Score the default, forecast2, a fixed interval and fitted plans alone."),
    ] = False,
) -> None:
    torch.set_num_threads(1)
    if model not in MODELS:
        raise typer.BadParameter(f"{model!r} is none of {', '.join(MODELS)}", param_hint="--model")
    subject = MODELS[model]("cpu")
    sensitivity = measured(subject, keep)
    calibration = soda_compile.record(subject.pipe, lambda seed: generate(subject, seed, calibration_samples),
                                      generations=1, first_seed=CALIBRATION)  # fmt: skip
    if sensitivity.intervals is None:
        sensitivity = soda_compile.simulate(calibration, sensitivity, spacings=spacings or SPACINGS)
        if keep is not None:
            sensitivity.save(keep)
    fresh = soda_compile.record(subject.pipe, lambda seed: generate(subject, seed, samples), generations=1)
    about = {
        "title": f"{subject.title}; graphs run without Inductor",
        "fresh_seeds": f"0 to {samples - 1} in one batch",
        "calibration": {
            "seeds": f"{CALIBRATION} to {CALIBRATION + BATCH * sensitivity.info.generations - 1} for the sensitivity, "
            f"the first {calibration_samples} for simulating and fitting",
            "sensitivity_seconds": float(sensitivity.info.notes["seconds"]),
            "intervals": sensitivity.info.notes["intervals"],
        },
        "fit_ridges": list(RIDGES),
        "torch": torch.__version__,
    }
    for count in anchors or [12, 8, 18]:
        found = rows(calibration, fresh, plans(sensitivity, count), count, brief)
        report = with_rows(json.loads(out.read_text()) if out.exists() else {}, model, about, found)
        write_atomic(out, json.dumps(report, indent=1).encode())
        write_atomic(out.with_suffix(".md"), text(report).encode())


def with_rows(report: dict[str, Any], model: str, about: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the report with what was found for a model, instead of its rows for the same number of anchors."""
    counts = {row["anchors"] for row in found}
    others = [row for row in report.get(model, {}).get("rows", []) if row["anchors"] not in counts]
    return {**report, model: {**about, "rows": sorted(others + found, key=lambda row: float(row["anchors"]))}}


def rows(
    calibration: soda_compile.Recording,
    fresh: soda_compile.Recording,
    made: dict[str, soda_compile.Plan],
    count: int,
    brief: bool,
) -> list[dict[str, Any]]:
    tried = soda_compile.compare(calibration, made)
    whole = on_stack(made)
    fits = fitted(calibration, made, tried, 3)
    chosen = min(fits, key=lambda name: float(fits[name].after.mean()))
    fits |= fitted(calibration, whole, soda_compile.compare(calibration, whole), 1)
    scored = {name: plan for name, plan in made.items() if name in BRIEFLY} if brief else made | whole
    made = scored | {name: fit.plan for name, fit in fits.items()}
    errors = soda_compile.compare(fresh, made).errors
    return [
        {
            "anchors": count,
            "plan": name,
            **score(error, errors),
            "chosen_on_calibration": name == chosen,
            "calibration_error": float(tried.errors[name].mean()) if name in tried.errors else None,
            "fit_denoiser_calls": fits[name].denoiser_calls if name in fits else None,
            "fit_seconds": fits[name].seconds if name in fits else None,
            "orders": "".join(sorted(set("".join(made[name].rows)))),
            "plan_anchors": list(made[name].anchors),
        }
        for name, error in errors.items()
    ]


def fitted(
    calibration: soda_compile.Recording,
    made: Mapping[str, soda_compile.Plan],
    tried: soda_compile.Compared,
    count: int,
) -> dict[str, soda_compile.Fit]:
    """Fit the plans that are closest on calibration, as ``closest_plan`` does."""
    nearest = nearest_first(made, tried)[:count]
    return {f"{name}, fitted": soda_compile.fit(calibration, made[name]) for name in nearest}


def score(error: np.ndarray, errors: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the mean, the 95th percentile, and the paired ratio to today's default with its standard error."""
    paired, standard_error = paired_ratio(error, errors[TODAY])
    return {
        **spread(error),
        "ratio_of_means": float(error.mean() / errors[TODAY].mean()),
        "paired_ratio": paired,
        "paired_ratio_standard_error": standard_error,
    }


def text(report: Mapping[str, Any]) -> str:
    """Return the tables of all models, and what is chosen over all of them."""
    return "\n".join(
        [
            "# Closeness to the original at equal FLOPs",
            "",
            "Relative L2 of the last sample; ratios are to today's default, paired by sample (geometric mean, one",
            "standard error). With one slot, what all regions add is kept together. The three plans that are closest",
            "on calibration are fitted, and of those with one slot the closest; the best of the three there is chosen,",
            "as closest_plan does. Where no weights come closer on calibration, a plan stays as it is. Calls of",
            "simulating and fitting are in batches of the calibration's size, and seconds those of a busy machine.",
            "",
            *summary(report),
            *(line for name, found in report.items() for line in section(name, found)),
        ]
    )


def summary(report: Mapping[str, Any]) -> list[str]:
    """Return the lines of what is chosen on calibration, for each model and number of anchors."""
    lines = [
        "## Chosen on calibration, and fitted",
        "",
        "| model | anchors | plan | paired ratio |",
        "|---|---|---|---|",
    ]
    ratios = []
    for name, found in report.items():
        for row in found["rows"]:
            if row["chosen_on_calibration"]:
                ratios.append(row["paired_ratio"])
                lines.append(f"| {name} | {row['anchors']} | {row['plan']} | {ratio(row)} |")
    mean, worst = float(np.exp(np.log(ratios).mean())), max(ratios)
    return [*lines, "", f"Geometric mean {mean:.2f}, largest {worst:.2f}.", ""]


def section(name: str, found: Mapping[str, Any]) -> list[str]:
    calibration = found["calibration"]
    lines = [
        f"## {name}",
        "",
        f"{found['title']}. Fresh seeds {found['fresh_seeds']}. Calibration seeds: {calibration['seeds']}.",
        f"Simulating took {calibration['intervals']}. Ridges of fits: {', '.join(map(str, found['fit_ridges']))}.",
        "",
        "| anchors | plan | mean | 95th percentile | ratio of means | paired ratio | fit: calls, seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        cells = [
            row["anchors"],
            row["plan"] + (" (best on calibration)" if row["chosen_on_calibration"] else ""),
            f"{row['relative_l2_mean']:.2%}",
            f"{row['relative_l2_p95']:.2%}",
            f"{row['ratio_of_means']:.2f}",
            ratio(row),
            f"{row['fit_denoiser_calls']:.0f}, {row['fit_seconds']:.0f}" if row["fit_seconds"] else "",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, ""]


def ratio(row: Mapping[str, Any]) -> str:
    return f"{row['paired_ratio']:.2f} ± {row['paired_ratio_standard_error']:.2f}"


if __name__ == "__main__":
    typer.run(main)
