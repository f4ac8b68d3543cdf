"""How close plans stay to the original at equal FLOPs, on the digits model: all strategies, slots, fitted weights.

python -m benchmarks.closeness

Plans are made and fitted on calibration seeds, and scored on others. Rewritten graphs run operator by operator, without
Inductor, which differs by rounding.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

os.environ.setdefault("SODA_COMPILE_LOWERING", "eager")

import soda_compile
from soda_compile.digits.pipeline import DigitsPipeline, load
from soda_compile.measure.closest import strategies_for
from soda_compile.measure.fitting import RIDGES
from soda_compile.measure.simulation import SPACINGS
from soda_compile.storage.files import write_atomic

HELD_OUT = 1_000_000  # calibration seeds lie far from the scored ones
STEPS, DIGITS = 50, 10
TODAY = "today's default"


def generate(pipe: DigitsPipeline, first: int, count: int) -> torch.Tensor:
    """Latents [count, 1, 8, 8], one label and one noise for each seed."""
    generators = [torch.Generator().manual_seed(first + number) for number in range(count)]
    labels = [(first + number) % 10 for number in range(count)]
    return pipe(class_labels=labels, generator=generators, output_type="latent").images


def plans(sensitivity: soda_compile.Sensitivity, anchors: int) -> dict[str, soda_compile.Plan]:
    strategies = {TODAY: soda_compile.AnchorSchedule(), **strategies_for(sensitivity)}
    made = {name: soda_compile.plan(sensitivity, anchors=anchors, strategy=each) for name, each in strategies.items()}
    return {name: each for name, each in made.items() if each != made[TODAY] or name == TODAY}


def on_stack(made: dict[str, soda_compile.Plan]) -> dict[str, soda_compile.Plan]:
    """Return the same plans with one value kept for all regions."""
    return {f"{name}, one slot": replace(each, slots="stack", watched=None) for name, each in made.items()}


def measured(pipe: DigitsPipeline, keep: Path | None) -> soda_compile.Sensitivity:
    if keep is not None and keep.exists():
        return soda_compile.Sensitivity.load(keep)
    sensitivity = soda_compile.calibrate(
        pipe, lambda seed: generate(pipe, HELD_OUT + DIGITS * seed, DIGITS), generations=2
    )
    if keep is not None:
        sensitivity.save(keep)
    return sensitivity


def main(
    out: Path = Path("benchmarks/results/closeness.json"),
    samples: int = 100,
    calibration_samples: Annotated[int, typer.Option(help="For simulated intervals and fitted weights.")] = 16,
    anchors: Annotated[list[int] | None, typer.Option()] = None,
    spacings: Annotated[list[int] | None, typer.Option()] = None,
    keep: Annotated[Path | None, typer.Option(help="Where the sensitivity is kept for the next run.")] = None,
) -> None:
    torch.set_num_threads(1)
    pipe = load()
    sensitivity = measured(pipe, keep)
    calibration = soda_compile.record(pipe, lambda seed: generate(pipe, seed, calibration_samples), generations=1,
                                      first_seed=HELD_OUT)  # fmt: skip
    if sensitivity.intervals is None:
        sensitivity = soda_compile.simulate(calibration, sensitivity, spacings=spacings or SPACINGS)
        if keep is not None:
            sensitivity.save(keep)
    fresh = soda_compile.record(pipe, lambda seed: generate(pipe, seed, samples), generations=1)
    report: dict[str, Any] = {
        "model": f"digits, DDIM, {STEPS} steps, guidance 1.5; graphs run without Inductor",
        "fresh_seeds": f"0 to {samples - 1} in one batch",
        "calibration": {
            "seeds": f"{HELD_OUT} to {HELD_OUT + DIGITS * sensitivity.info.generations - 1} for the sensitivity, "
            f"the first {calibration_samples} for simulating and fitting",
            "sensitivity_seconds": float(sensitivity.info.notes["seconds"]),
            "intervals": sensitivity.info.notes["intervals"],
        },
        "fit_ridges": list(RIDGES),
        "torch": torch.__version__,
        "rows": [],
    }
    for count in anchors or [12, 8, 18]:
        report["rows"] += rows(calibration, fresh, plans(sensitivity, count), count)
        write_atomic(out, json.dumps(report, indent=1).encode())
        write_atomic(out.with_suffix(".md"), table(report).encode())


def rows(
    calibration: soda_compile.Recording, fresh: soda_compile.Recording, made: dict[str, soda_compile.Plan], count: int
) -> list[dict[str, Any]]:
    started = time.perf_counter()
    tried = soda_compile.compare(calibration, made)
    seconds, costs = {"compare": time.perf_counter() - started}, {"compare": tried.denoiser_calls}
    whole = on_stack(made)
    chosen = (tried.best, soda_compile.compare(calibration, whole).best)
    made = {**made, **whole}
    for name in chosen:
        fit = soda_compile.fit(calibration, made[name])
        made = {**made, f"{name}, fitted": fit.plan}
        seconds[f"{name}, fitted"], costs[f"{name}, fitted"] = fit.seconds, fit.denoiser_calls
    errors = soda_compile.compare(fresh, made).errors
    return [
        {
            "anchors": count,
            "plan": name,
            **score(error, errors),
            "chosen_on_calibration": name in {f"{best}, fitted" for best in chosen},
            "calibration_error": float(tried.errors[name].mean()) if name in tried.errors else None,
            "fit_denoiser_calls": costs.get(name),
            "fit_seconds": seconds.get(name),
            "orders": "".join(sorted(set("".join(made[name].rows)))),
            "plan_anchors": list(made[name].anchors),
        }
        for name, error in errors.items()
    ]


def score(error: np.ndarray, errors: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the mean, the 95th percentile, and the paired ratio to today's default with its standard error."""
    logs = np.log(error / errors[TODAY])
    return {
        "relative_l2_mean": float(error.mean()),
        "relative_l2_p95": float(np.quantile(error, 0.95)),
        "ratio_of_means": float(error.mean() / errors[TODAY].mean()),
        "paired_ratio": float(np.exp(logs.mean())),
        "paired_ratio_standard_error": float(np.exp(logs.mean()) * logs.std() / np.sqrt(len(logs))),
    }


def table(report: dict[str, Any]) -> str:
    calibration = report["calibration"]
    lines = [
        "# Closeness to the original at equal FLOPs",
        "",
        f"{report['model']}. Relative L2 of the last sample, fresh seeds {report['fresh_seeds']}; ratios are to",
        "today's default, paired by sample (geometric mean, one standard error). With one slot, what all regions add",
        "is kept together, in a twelfth of the memory; the best on calibration of both kinds are fitted.",
        f"Calibration seeds: {calibration['seeds']}. Simulating took {calibration['intervals']}; calls are",
        "in batches of the calibration's size, and seconds those of a busy machine. Ridges of fits: "
        f"{', '.join(map(str, report['fit_ridges']))};",
        "where no weights come closer on calibration, the plan stays as it is.",
        "",
        "| anchors | plan | mean | 95th percentile | ratio of means | paired ratio | fit: calls, seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        cells = [
            row["anchors"],
            row["plan"] + (" (best on calibration)" if row["chosen_on_calibration"] else ""),
            f"{row['relative_l2_mean']:.2%}",
            f"{row['relative_l2_p95']:.2%}",
            f"{row['ratio_of_means']:.2f}",
            f"{row['paired_ratio']:.2f} ± {row['paired_ratio_standard_error']:.2f}",
            f"{row['fit_denoiser_calls']:.0f}, {row['fit_seconds']:.0f}" if row["fit_seconds"] else "",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
