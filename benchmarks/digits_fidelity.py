"""How close planned generations come to the original, on the digits model: schedules x operators at equal compute.

python benchmarks/digits_fidelity.py --out benchmarks/results/digits_fidelity.json
"""

import itertools
import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

import soda_compile
from soda_compile.digits.classifier import load_classifier
from soda_compile.digits.pipeline import DigitsPipeline, load
from soda_compile.storage.files import write_atomic


def generate(pipe: DigitsPipeline, seeds: list[int]) -> torch.Tensor:
    """Latents [n, 1, 8, 8], one label and one noise for each seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    labels = [seed % 10 for seed in seeds]
    return pipe(class_labels=labels, generator=generators, output_type="latent").images


def plans(sensitivity: soda_compile.Sensitivity, anchors: int) -> dict[str, soda_compile.Plan]:
    rows = {
        f"fixed interval, {operator}": soda_compile.fixed_interval_plan(sensitivity, anchors=anchors, operator=operator)
        for operator in ("reuse", "forecast1", "forecast2")
    }
    rows["paper (OFS+DCS), reuse"] = soda_compile.plan(
        sensitivity, anchors=anchors, strategy=soda_compile.PaperSchedule()
    )
    for operator, weighted in itertools.product(("reuse", "forecast1", "forecast2", "auto"), (False, True)):
        name = f"DP, {operator}" + (", step weights" if weighted else "")
        rows[name] = soda_compile.plan(
            sensitivity, anchors=anchors, strategy=soda_compile.AnchorSchedule(operator=operator, step_weights=weighted)
        )
    return rows


def main(
    out: Path = Path("benchmarks/results/digits_fidelity.json"),
    samples: int = 100,
    generations: Annotated[int, typer.Option(help="Calibration generations of 10 digits.")] = 4,
    anchors: Annotated[list[int] | None, typer.Option()] = None,
) -> None:
    pipe = load()
    held_out = 1_000_000  # calibration seeds lie far from the scored ones
    sensitivity = soda_compile.calibrate(
        pipe, lambda seed: generate(pipe, [held_out + 10 * seed + k for k in range(10)]), generations=generations
    )
    seeds = list(range(samples))
    original = generate(pipe, seeds)
    classifier = load_classifier()

    def score(images: torch.Tensor) -> tuple[np.ndarray, float]:
        error = (images - original).flatten(1).norm(dim=1) / original.flatten(1).norm(dim=1)
        with torch.no_grad():
            predicted = classifier(images.clamp(-1, 1)).argmax(1)
        return error.numpy(), float((predicted == torch.tensor(seeds) % 10).float().mean())

    rows = []
    for count in anchors or [18, 12]:
        baseline = None
        for name, plan in plans(sensitivity, count).items():
            soda_compile.accelerate(pipe, plan)
            error, agreement = score(generate(pipe, seeds))
            soda_compile.restore(pipe)
            baseline = error if baseline is None else baseline
            rows.append(
                {
                    "anchors": count,
                    "method": name,
                    "flop_ratio": plan.flop_ratio,
                    "relative_l2_mean": float(error.mean()),
                    "relative_l2_median": float(np.median(error)),
                    "ratio_to_fixed_reuse": float(np.exp(np.log(error / baseline).mean())),
                    "class_agreement": agreement,
                    "plan_anchors": list(plan.anchors),
                }
            )
    forward = torch.compile(pipe.transformer.forward, fullgraph=True, dynamic=False)
    pipe.transformer.forward = forward
    floor, agreement = score(generate(pipe, seeds))
    report = {
        "seeds": f"0 to {samples - 1}, labels seed % 10; calibration on {10 * generations} others",
        "torch": torch.__version__,
        "noise_floor_relative_l2_mean": float(floor.mean()),
        "class_agreement_original": agreement,
        "rows": rows,
    }
    write_atomic(out, json.dumps(report, indent=1).encode())
    show(report)


def show(report: dict) -> None:
    table = Table(
        "anchors", "method", "FLOPs", "rel. L2 mean", "median", "/ fixed reuse (geo. mean)", "class agreement"
    )
    for row in report["rows"]:
        table.add_row(
            str(row["anchors"]),
            row["method"],
            f"{row['flop_ratio']:.3f}",
            f"{row['relative_l2_mean']:.2%}",
            f"{row['relative_l2_median']:.2%}",
            f"{row['ratio_to_fixed_reuse']:.3f}",
            f"{row['class_agreement']:.1%}",
        )
    console = Console(width=120)
    console.print(table)
    console.print(
        f"seeds {report['seeds']}; floor (Inductor against eager) {report['noise_floor_relative_l2_mean']:.1e}"
    )


if __name__ == "__main__":
    typer.run(main)
