"""The paper's ablation with token pruning (SODA, arXiv 2603.07057), at equal FLOPs: schedules x strategies x scores.

python benchmarks/prune_ablation.py --model digits

The paper's N_s = 18 of 50 steps comes to 2.49x: pruning takes what two more anchors would cost. So a budget is what
N_s + 2 anchors cost without pruning; strategies of the paper that prune have N_s anchors, and the unified
planner chooses its anchors itself. The latter also lets every region compute, reuse or forecast on its own, so what
pruning adds is the difference to the row without it.

Graphs run without Inductor: every plan has many variants, and compiling them would change nothing but rounding.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal
from unittest import mock

import numpy as np
import torch
import typer
from rich.console import Console
from safetensors.torch import load_file, save

import soda_compile
from soda_compile.digits.classifier import frechet_distance, load_classifier
from soda_compile.planner.costs import Costs
from soda_compile.planner.paper import PaperStrategy
from soda_compile.plans.plan import Plan
from soda_compile.plans.pruning import SCORES, Pruning
from soda_compile.plans.sensitivity import Sensitivity
from soda_compile.storage.files import write_atomic

EXTRA = 2
"""Anchors that cost as much as the paper's pruning."""
LAMBDA = -1.0
"""Of the paper's rule, alpha = lambda * Ec + beta; the planner's default."""
TUNED = (-3.0, -10.0, -30.0, -100.0)
"""Others to try; the steeper, the fewer tokens are pruned."""


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model with its judge.

    Attributes:
        pipe: the pipeline; ten classes.
        batch: samples generated at once.
        calibration_batch: samples in one calibration generation.
        features: features [n, d] of images [n, channels, height, width] in [-1, 1].
        real: features of real images.
        space: what the features are.
    """

    pipe: Any
    batch: int
    calibration_batch: int
    features: Callable[[torch.Tensor], np.ndarray]
    real: np.ndarray
    space: str

    def generate(self, seeds: list[int]) -> torch.Tensor:
        """Latents of one sample a seed, labels seed % 10; every sample has its own noise."""
        parts = []
        for start in range(0, len(seeds), self.batch):
            chunk = seeds[start : start + self.batch]
            generators = [torch.Generator().manual_seed(seed) for seed in chunk]
            labels = [seed % 10 for seed in chunk]
            parts.append(self.pipe(class_labels=labels, generator=generators, output_type="latent").images)
        return torch.cat(parts)

    def frechet(self, images: torch.Tensor, other: torch.Tensor | None = None) -> float:
        """Distance to real images, or to other images."""
        to = self.real if other is None else self.features(other.clamp(-1, 1))
        return frechet_distance(self.features(images.clamp(-1, 1)), to)


def digits() -> Subject:
    from soda_compile.digits.data import load_split
    from soda_compile.digits.pipeline import load

    classifier = load_classifier()
    real = classifier.features(load_split()[0].images).numpy()
    return Subject(
        load(), 50, 10, lambda images: classifier.features(images).numpy(), real, "64 features of the classifier"
    )


def photos() -> Subject:
    from examples.photos.data import load_photographs
    from examples.photos.judge import features
    from examples.photos.pipeline import load

    crops = load_photographs().crops(torch.arange(1000) % 10, torch.Generator().manual_seed(0))
    real, space = features(crops).numpy(), "60 fixed features: random filters at 3 scales, mean colours"
    return Subject(load(), 20, 2, lambda images: features(images).numpy(), real, space)


def plans(sensitivity: Sensitivity, anchors: int) -> Iterator[tuple[str, Plan]]:
    """The rows of the table at one budget."""
    even = soda_compile.fixed_interval_plan(sensitivity, anchors=anchors + EXTRA, operator="reuse")
    assert even.flop_ratio is not None
    speedup = 1 / even.flop_ratio
    yield "fixed interval", even
    yield "OFS+DCS", soda_compile.plan(sensitivity, anchors=anchors + EXTRA, strategy=soda_compile.PaperSchedule())
    for score in SCORES:
        yield f"OFS+UAS, {score}", fixed_with_pruning(sensitivity, anchors, Pruning(score), speedup)
    for score in SCORES:
        yield f"OFS+DCS+UAS, {score}", paper(sensitivity, anchors, Pruning(score), speedup)
    tuned = (paper(sensitivity, anchors, Pruning("drift"), speedup, slope) for slope in (LAMBDA, *TUNED))
    yield "OFS+DCS+UAS, drift, tuned lambda", min(tuned, key=lambda plan: plan.predicted_error or math.inf)
    yield "fixed interval, forecast1", soda_compile.fixed_interval_plan(sensitivity, anchors=anchors + EXTRA)
    yield "default planner, forecast1", soda_compile.plan(sensitivity, anchors=anchors + EXTRA)
    yield (
        "unified planner, no pruning",
        soda_compile.plan(sensitivity, speedup=speedup, strategy=soda_compile.Unified()),
    )
    for score in SCORES:
        yield (
            f"unified planner, pruning by {score}",
            soda_compile.plan(sensitivity, speedup=speedup, strategy=soda_compile.Unified(pruning=Pruning(score))),
        )


def paper(sensitivity: Sensitivity, anchors: int, pruning: Pruning, speedup: float, slope: float = LAMBDA) -> Plan:
    """The paper's strategy."""
    return soda_compile.plan(
        sensitivity, anchors=anchors, speedup=speedup, strategy=soda_compile.PaperUnified(pruning, slope)
    )


def fixed_with_pruning(sensitivity: Sensitivity, anchors: int, pruning: Pruning, speedup: float) -> Plan:
    """The paper's pruning rule between anchors at a fixed interval."""
    even = soda_compile.fixed_interval_plan(sensitivity, anchors=anchors, operator="reuse", objective="cosine")
    costs, steps = Costs.read(sensitivity), sensitivity.info.steps
    tables = [sensitivity.table("cosine", name) for name in ("reuse", f"prune.{pruning.score}")]
    budget = steps * (costs.full / speedup - costs.base)
    found = PaperStrategy.read(*tables, even.anchors, costs, LAMBDA).within(budget)
    assert found is not None
    rows, beta = found
    return dataclasses.replace(
        even,
        actions=rows.actions,
        pruning=pruning,
        flop_ratio=costs.of(rows.actions) / (steps * costs.full),
        predicted_error=float(rows.errors.sum()),
        method=(("planner", "fixed interval, the paper's pruning"), ("lambda", LAMBDA), ("beta", beta)),
    )


def shares(plan: Plan) -> dict[str, float]:
    """The share of (region, step) pairs of each kind of action."""
    kinds = [action.kind for row in plan.actions for action in row]
    return {kind: kinds.count(kind) / len(kinds) for kind in ("compute", "reuse", "forecast", "prune")}


@dataclasses.dataclass(frozen=True)
class Runs:
    """What a model generates by plans: each distinct plan runs once, whatever rows it has, and one batch at a time.

    Attributes:
        subject: the model.
        folder: where latents are kept, a file for each plan and batch. A run that was interrupted, or is repeated with
            more samples, generates what is missing.
        weights: digest of the model's weights, so that one folder serves all models.
    """

    subject: Subject
    folder: Path
    weights: str

    def of(self, plan: Plan | None, seeds: list[int]) -> torch.Tensor:
        """The latents by a plan, or by the original model; who made the plan makes no difference."""
        size, does = self.subject.batch, plan and (plan.rows, plan.pruning)
        batches = [seeds[start : start + size] for start in range(0, len(seeds), size)]
        keys = [repr((self.weights, does, batch)) for batch in batches]
        paths = [self.folder / f"{sha256(key.encode()).hexdigest()[:16]}.safetensors" for key in keys]
        missing = [(path, batch) for path, batch in zip(paths, batches, strict=True) if not path.is_file()]
        if missing:
            with self._accelerated(plan) if plan else contextlib.nullcontext():
                for path, batch in missing:
                    write_atomic(path, save({"latents": self.subject.generate(batch).contiguous()}))
        return torch.cat([load_file(path)["latents"] for path in paths])

    @contextlib.contextmanager
    def _accelerated(self, plan: Plan) -> Iterator[None]:
        with mock.patch.dict(os.environ, SODA_COMPILE_LOWERING="eager"):
            soda_compile.accelerate(self.subject.pipe, plan)
            try:
                yield
            finally:
                soda_compile.restore(self.subject.pipe)


def digest(module: torch.nn.Module) -> str:
    """SHA-256 of all weights."""
    return sha256(b"".join(value.numpy().tobytes() for value in module.state_dict().values())).hexdigest()


def relative_l2(images: torch.Tensor, original: torch.Tensor) -> np.ndarray:
    return ((images - original).flatten(1).norm(dim=1) / original.flatten(1).norm(dim=1)).double().numpy()


def ablate(runs: Runs, sensitivity: Sensitivity, budgets: list[int], seeds: list[int]) -> Iterator[dict[str, Any]]:
    """The noise floors and all rows so far, after every row."""
    console, subject = Console(), runs.subject
    original = runs.of(None, seeds)
    other = runs.of(None, [seed + 500_000 for seed in seeds])
    subject.pipe.transformer.forward = torch.compile(subject.pipe.transformer.forward, fullgraph=True, dynamic=False)
    floor = relative_l2(subject.generate(seeds[: subject.batch]), original[: subject.batch])
    del subject.pipe.transformer.forward
    floors = {
        "original_frechet_to_real": subject.frechet(original),
        "other_seeds_frechet_to_real": subject.frechet(other),
        "two_seeds_frechet": subject.frechet(other, original),
        "inductor_against_eager_relative_l2_mean": float(floor.mean()),
    }
    rows: list[dict[str, Any]] = []
    for budget in budgets:
        reference = None
        for name, plan in plans(sensitivity, budget):
            images = runs.of(plan, seeds)
            error = relative_l2(images, original)
            reference = error if reference is None else reference
            rows.append(
                {
                    "n_s": budget,
                    "method": name,
                    "flop_ratio": plan.flop_ratio,
                    "relative_l2_mean": float(error.mean()),
                    "relative_l2_mean_standard_error": float(error.std(ddof=1) / len(error) ** 0.5),
                    "relative_l2_median": float(np.median(error)),
                    "ratio_to_fixed_reuse": float(np.exp(np.log(error / reference).mean())),
                    "frechet_to_real": subject.frechet(images),
                    "frechet_to_original": subject.frechet(images, original),
                    "shared_anchors": list(plan.anchors),
                    "action_shares": shares(plan),
                    "lambda": dict(plan.method).get("lambda"),
                }
            )
            console.print(budget, name, f"{error.mean():.4f} {np.median(error):.4f} {rows[-1]['frechet_to_real']:.3f}")
            yield {**floors, "rows": rows}


def markdown(report: dict[str, Any]) -> str:
    """The report as a table for a README."""
    lines = [
        f"# Pruning ablation, {report['model']} model",
        "",
        f"DDIM, 50 steps, guidance 1.5, {report['samples']} samples, seeds {report['seeds']}. Relative L2 is to the "
        "unaccelerated run from the same noise. A budget is what N_s + 2 anchors cost without pruning. Fréchet "
        f"distances are taken in {report['feature_space']}.",
        "",
        "| N_s | method | FLOPs | rel. L2 mean | ± | median | / fixed | Fréchet to real | to original | pruned |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['n_s']} | {row['method']} | {row['flop_ratio']:.3f} | {row['relative_l2_mean']:.2%} "
        f"| {row['relative_l2_mean_standard_error']:.2%} | {row['relative_l2_median']:.2%} "
        f"| {row['ratio_to_fixed_reuse']:.3f} | {row['frechet_to_real']:.3g} | {row['frechet_to_original']:.3g} "
        f"| {row['action_shares']['prune']:.0%} |"
        for row in report["rows"]
    ]
    lines += [
        "",
        '± is the standard error of the mean; "/ fixed" the geometric mean of the ratio per sample; '
        '"pruned" the share of (region, step) pairs that prune.',
        "",
        f"Noise floors: Fréchet to real {report['original_frechet_to_real']:.3g} for the unaccelerated samples and "
        f"{report['other_seeds_frechet_to_real']:.3g} for as many of other seeds, "
        f"{report['two_seeds_frechet']:.3g} between the two; relative L2 of Inductor to eager "
        f"{report['inductor_against_eager_relative_l2_mean']:.1e}.",
    ]
    return "\n".join(lines) + "\n"


def main(
    model: Annotated[Literal["digits", "photos"], typer.Option()] = "digits",
    out: Annotated[Path | None, typer.Option(help="JSON file; the Markdown table goes beside it.")] = None,
    samples: int = 200,
    generations: Annotated[int, typer.Option(help="Calibration generations, of 10 digits or 2 crops.")] = 4,
    n_s: Annotated[list[int] | None, typer.Option(help="Anchors of the paper's strategy; default 18 and 12.")] = None,
    sensitivity: Annotated[Path | None, typer.Option(help="Keep the measured errors here, and reuse them.")] = None,
    kept: Annotated[
        Path | None, typer.Option(help="Keep latents in this folder, to go on after an interruption.")
    ] = None,
) -> None:
    torch.set_num_threads(1)
    subject = {"digits": digits, "photos": photos}[model]()
    errors = _sensitivity(subject, generations, sensitivity)
    seeds = list(range(samples))
    calibration = len(errors.info.seeds) * subject.calibration_batch
    about = {
        "model": model,
        "samples": samples,
        "seeds": f"0 to {samples - 1}, labels seed % 10; calibration on {calibration} others",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "soda-compile")},
        "feature_space": subject.space,
    }
    out = out or Path(__file__).parent / "results" / f"prune_ablation_{model}.json"
    with contextlib.ExitStack() as stack:
        folder = kept or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for results in ablate(Runs(subject, folder, digest(subject.pipe.transformer)), errors, n_s or [18, 12], seeds):
            write_atomic(out, json.dumps({**about, **results}, indent=1).encode())
            write_atomic(out.with_suffix(".md"), markdown({**about, **results}).encode())


def _sensitivity(subject: Subject, generations: int, path: Path | None) -> Sensitivity:
    if path is not None and path.is_file():
        return Sensitivity.load(path)
    first, size = 1_000_000, subject.calibration_batch  # calibration seeds lie far from the scored ones
    measured = soda_compile.calibrate(
        subject.pipe,
        lambda seed: subject.generate([first + size * seed + k for k in range(size)]),
        generations=generations,
        max_interval=8,
        prune_scores=SCORES,
    )
    if path is not None:
        measured.save(path)
    return measured


if __name__ == "__main__":
    typer.run(main)
