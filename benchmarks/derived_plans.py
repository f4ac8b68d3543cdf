"""Plans derived from one measurement at 50 steps against plans measured at the setting that they are used at.

python -m benchmarks.derived_plans --model digits

For each setting (steps, sampler, guidance) and speedup there are three plans of equal FLOPs: derived, measured there,
and measured there again on other seeds. What the last two differ by is the floor: how much of a difference between
plans is chance. Samples are compared with the unaccelerated ones of the same setting and noise.

Graphs run without Inductor, as compiling them would change nothing but rounding.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import diffusers
import numpy as np
import torch
import typer

import soda_compile
from soda_compile.integrations.diffusers.derive import derive_for, scheduler_at
from soda_compile.plans.plan import Plan
from soda_compile.plans.sensitivity import Sensitivity
from soda_compile.storage.files import write_atomic

BASE_STEPS, BASE_GUIDANCE = 50, 1.5
BASE_INTERVAL = 20
"""Longest age that is measured at 50 steps: at 10 steps four steps are as long."""
CALIBRATION, AGAIN = 1_000_000, 2_000_000
"""First seeds of the measurements; samples to compare have 0, 1, ..."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What plans are made for."""

    steps: int
    scheduler: str = "DDIMScheduler"
    guidance: float = BASE_GUIDANCE

    def __str__(self) -> str:
        return f"{self.steps} {self.scheduler.removesuffix('Scheduler')}, guidance {self.guidance:g}"


SETTINGS = (
    *(Setting(steps) for steps in (10, 20, 25, 30, 100)),
    Setting(50, "DPMSolverMultistepScheduler"),
    Setting(50, "EulerDiscreteScheduler"),
    *(Setting(50, guidance=guidance) for guidance in (1.0, 3.0, 5.0)),
)
FEW = (SETTINGS[0], SETTINGS[1], SETTINGS[2], SETTINGS[5], SETTINGS[8])


@dataclasses.dataclass(eq=False)
class Subject:
    """A pipeline, and how much of it is run at once.

    Attributes:
        pipe: The pipeline; ten classes.
        batch: Samples in one calibration generation.
        generations: Generations in one measurement.
    """

    pipe: Any
    batch: int
    generations: int

    def generate(self, setting: Setting, seeds: range) -> torch.Tensor:
        """Latents of one sample a seed, labels seed % 10; every sample has its own noise."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        labels = [seed % 10 for seed in seeds]
        options = {"guidance_scale": setting.guidance, "num_inference_steps": setting.steps}
        latents: torch.Tensor = self.pipe(labels, generator=generators, output_type="latent", **options).images
        return latents

    def measure(self, setting: Setting, first_seed: int, max_interval: int = 10) -> Sensitivity:
        """Calibrate at a setting."""

        def generate(seed: int) -> torch.Tensor:
            start = first_seed + seed * self.batch
            return self.generate(setting, range(start, start + self.batch))

        return soda_compile.calibrate(
            self.pipe,
            generate,
            generations=self.generations,
            max_interval=min(max_interval, setting.steps - 1),
            guidance=setting.guidance,
        )

    def under(self, plan: Plan, setting: Setting, seeds: range) -> torch.Tensor:
        """Latents under a plan, every call of which must follow it."""
        soda_compile.accelerate(self.pipe, plan, on_miss="error")
        try:
            return self.generate(setting, seeds)
        finally:
            soda_compile.restore(self.pipe)


def subject(model: str) -> Subject:
    """The digits model, the class-conditional one of clothes, or that of the photographs."""
    if model == "digits":
        from soda_compile.digits.pipeline import load

        return Subject(load(), batch=10, generations=1)
    if model == "fashion":
        from examples.fashion.pipeline import load_dit

        return Subject(load_dit(), batch=4, generations=1)
    from examples.photos.pipeline import load as load_photos

    return Subject(load_photos(), batch=2, generations=1)


def objective(plan: Plan, sensitivity: Sensitivity) -> float:
    """The summed residual error that a measurement gives a plan whose regions all compute at its anchors."""
    anchors, total = plan.anchors, 0.0
    for step in range(plan.steps):
        past = [anchor for anchor in anchors if anchor <= step]
        if past[-1] == step:
            continue
        age, spacing = step - past[-1], past[-1] - past[-2] if len(past) > 1 else 1
        for index, region in enumerate(plan.regions):
            total += sensitivity.error("residual", str(plan.action(index, step)), step, region, age, spacing)
    return total


def tables_apart(derived: Sensitivity, measured: Sensitivity) -> tuple[float, float]:
    """Median and 90th percentile of |derived / measured - 1|, residual errors of reuse and forecast1, ages to 4."""
    width = min(derived.info.max_interval, measured.info.max_interval, 4)
    apart = []
    for operator in ("reuse", "forecast1"):
        ages = (slice(None), slice(None), *(slice(width),) * (1 if operator == "reuse" else 2))
        found, true = (each.table("residual", operator)[ages].astype(np.float64) for each in (derived, measured))
        good = np.isfinite(found) & np.isfinite(true) & (true > 0)
        apart.append(np.abs(found[good] / true[good] - 1))
    values = np.concatenate(apart)
    return float(np.median(values)), float(np.quantile(values, 0.9))


def relative(latents: torch.Tensor, original: torch.Tensor) -> np.ndarray:
    """Relative L2 distance of each sample, float64 [n]."""
    difference = (latents - original).flatten(1).norm(dim=1) / original.flatten(1).norm(dim=1)
    return difference.double().numpy()


def compare(own: Subject, base: Sensitivity, setting: Setting, speedups: list[float], seeds: range) -> Iterator[dict]:
    """Yield one row for each speedup."""
    scheduler = getattr(diffusers, setting.scheduler).from_config(own.pipe.scheduler.config)
    own.pipe.scheduler = scheduler
    derived = derive_for(base, scheduler_at(base, scheduler, setting.steps), (setting.steps,))
    measured, again = (own.measure(setting, first) for first in (CALIBRATION, AGAIN))
    original = own.generate(setting, seeds)
    everything = soda_compile.compute_all_plan(measured.info.regions, setting.steps)
    floor = relative(own.under(everything, setting, seeds), original)
    median, tenth = tables_apart(derived.sensitivity, measured)
    for speedup in speedups:
        tables = {"derived": derived.sensitivity, "measured": measured, "again": again}
        plans = {name: soda_compile.plan(table, speedup=speedup) for name, table in tables.items()}
        errors = {name: relative(own.under(plan, setting, seeds), original) for name, plan in plans.items()}
        ratios = {name: np.log(errors[name] / errors["measured"]) for name in ("derived", "again")}
        yield {
            "setting": str(setting),
            "speedup": speedup,
            "flop_ratio": {name: plan.flop_ratio for name, plan in plans.items()},
            "anchors": {name: list(plan.anchors) for name, plan in plans.items()},
            "relative_l2": {name: float(error.mean()) for name, error in errors.items()},
            "ratio": {name: math.exp(float(ratio.mean())) for name, ratio in ratios.items()},
            "ratio_log_se": {name: float(ratio.std(ddof=1) / math.sqrt(len(ratio))) for name, ratio in ratios.items()},
            "objective_excess": {
                name: objective(plans[name], measured) / objective(plans["measured"], measured) - 1 for name in ratios
            },
            "predicted_loss": dataclasses.asdict(derived.loss),
            "tables_apart": {"median": median, "p90": tenth},
            "tables_apart_again": dict(zip(("median", "p90"), tables_apart(again, measured), strict=True)),
            "rounding_relative_l2": float(floor.mean()),
        }


HEAD = (
    "| setting | speedup | FLOPs | rel. L2, derived | measured | measured again | derived / measured | "
    "again / measured | objective, derived | again | entries, predicted | found | again |\n"
    "|" + "---|" * 13
)


def table(report: dict) -> str:
    """The results as Markdown."""
    rows = []
    for row in report["rows"]:
        loss, error, excess = row["predicted_loss"], row["relative_l2"], row["objective_excess"]
        predicted = 0.0 if loss["visited"] + loss["unknown"] >= 1 else loss["median"]
        ratios = [f"{row['ratio'][name]:.3f} ± {row['ratio_log_se'][name]:.3f}" for name in ("derived", "again")]
        cells = [
            row["setting"],
            f"{row['speedup']:g}",
            "/".join(sorted({f"{ratio:.3f}" for ratio in row["flop_ratio"].values()})),
            *(f"{error[name]:.2%}" for name in ("derived", "measured", "again")),
            *ratios,
            *(f"{excess[name]:+.1%}" for name in ("derived", "again")),
            f"{predicted:.1%}",
            f"{row['tables_apart']['median']:.1%}",
            f"{row['tables_apart_again']['median']:.1%}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    floors = [row["rounding_relative_l2"] for row in report["rows"]]
    return (
        f"# Plans derived from one measurement, {report['model']} model\n\n"
        f"`{report['command']}`\n\n{report['about']} Running everything through the same graphs differs from the "
        f"unaccelerated run by at most {max(floors):.1e}.\n\n" + "\n".join([HEAD, *rows]) + "\n"
    )


ABOUT = (
    "Measured with DDIM, {steps} steps, guidance {guidance:g}, max_interval {interval}. Relative L2 is to the "
    "unaccelerated samples of the same setting and noise, seeds 0 to {last}, labels seed % 10; calibration on {count} "
    "others (from seed {first}; again: from {again}). Ratios are geometric means over samples, ± their standard error. "
    "Objective: by how much the plan's summed residual error, looked up in the table measured at the setting, exceeds "
    "that of the plan made for it. Entries: median relative difference of residual errors of reuse and forecast1, ages "
    "to 4, from those measured at the setting; predicted is the median that leaving out every other measured step "
    "gives, 0 where all levels were visited."
)


def main(
    model: Annotated[Literal["digits", "fashion", "photos"], typer.Option()] = "digits",
    out: Path = Path("benchmarks/results/derived_plans.json"),
    samples: int = 20,
    speedup: Annotated[list[float] | None, typer.Option(help="By default 2 and 3.")] = None,
    few: Annotated[bool, typer.Option("--few", help="Five of the settings.")] = False,
) -> None:
    """Measure once at 50 steps, and compare at each setting."""
    os.environ["SODA_COMPILE_LOWERING"] = "eager"
    started, own, seeds = time.perf_counter(), subject(model), range(samples)
    original = own.pipe.scheduler
    base = own.measure(Setting(BASE_STEPS), CALIBRATION, BASE_INTERVAL)
    report: dict[str, Any] = {
        "model": model,
        "command": f"python -m benchmarks.derived_plans --model {model} --samples {samples}{' --few' * few}",
        "about": ABOUT.format(
            steps=BASE_STEPS,
            guidance=BASE_GUIDANCE,
            interval=BASE_INTERVAL,
            last=samples - 1,
            count=own.batch * own.generations,
            first=CALIBRATION,
            again=AGAIN,
        ),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "rows": [],
    }
    for setting in FEW if few else SETTINGS:
        own.pipe.scheduler = original
        for row in compare(own, base, setting, speedup or [2.0, 3.0], seeds):
            report["rows"].append(row)
            took = time.perf_counter() - started
            typer.echo(f"{took:5.0f} s  {row['setting']} {row['speedup']:g}: {row['relative_l2']} {row['ratio']}")
        report["seconds"] = time.perf_counter() - started
        write_atomic(out, json.dumps(report, indent=1).encode())
        write_atomic(out.with_suffix(".md"), table(report).encode())


if __name__ == "__main__":
    typer.run(main)
