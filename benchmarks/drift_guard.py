"""Whether errors at anchors tell what is unlike the calibration, and what the guard makes of it, on the digits model.

python -m benchmarks.drift_guard

Generations are run as they were calibrated, and with guidance and initial noise that the calibration has not seen: with
a plan alone, with the guard, and with plans of as many computed steps as the guard came to. Rewritten graphs run
operator by operator, without Inductor, which differs by rounding.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers.utils.torch_utils import randn_tensor

import soda_compile
from benchmarks.closeness import STEPS, measured
from soda_compile.digits.pipeline import DigitsPipeline, load
from soda_compile.storage.files import write_atomic

GUARDS = (2.0, 1.5)


class Noised(DigitsPipeline):
    """The pipeline with initial noise of another size."""

    size = 1.0

    def _initial_noise(self, count: int, generator: Any) -> torch.Tensor:
        config = self.transformer.config
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        return self.size * randn_tensor(shape, generator=generator, dtype=self.transformer.dtype)


@dataclass(frozen=True)
class Kind:
    """A kind of generations, by what is different from the calibration's."""

    name: str
    guidance: float = 1.5
    noise: float = 1.0


KINDS = (
    Kind("as calibrated, other seeds"),
    Kind("guidance 6 instead of 1.5", guidance=6.0),
    Kind("guidance 12", guidance=12.0),
    Kind("noise 1.5 times as large", noise=1.5),
    Kind("noise 3 times as large", noise=3.0),
)


def generate(pipe: Noised, kind: Kind, seeds: Sequence[int]) -> list[torch.Tensor]:
    """Latents, one generation for each seed."""
    pipe.size = kind.noise
    return [
        pipe(
            [seed % 10],
            guidance_scale=kind.guidance,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images
        for seed in seeds
    ]


def run(
    pipe: Noised, kind: Kind, plan: soda_compile.Plan, guard: float | None, wanted: Sequence[torch.Tensor]
) -> dict[str, Any]:
    """Run the generations of a kind by a plan, and compare them with the original ones."""
    soda_compile.accelerate(pipe, plan, guard=guard)
    before = set(soda_compile.stats(pipe)["transformer"]["generations"])
    found = generate(pipe, kind, range(len(wanted)))
    counts = soda_compile.stats(pipe)["transformer"]["generations"]
    soda_compile.restore(pipe)
    mine = [each for number, each in counts.items() if number not in before]
    guarded = sum(each["guarded"] for each in mine) / len(mine)
    errors = [float((one - other).norm() / other.norm()) for one, other in zip(found, wanted, strict=True)]
    return {
        "kind": kind.name,
        "anchors": len(plan.anchors),
        "guard": guard,
        "computed_steps": len(plan.anchors) + guarded,
        "tripped_generations": sum(each["guarded"] > 0 for each in mine),
        "ratio_mean": sum(each["drift"]["ratio"] for each in mine) / len(mine),
        "worst_ratios": [each["drift"]["worst_ratio"] for each in mine],
        "relative_l2_mean": sum(errors) / len(errors),
        "relative_l2_worst": max(errors),
    }


def rows(
    pipe: Noised, sensitivity: soda_compile.Sensitivity, kind: Kind, anchors: int, wanted: Sequence[torch.Tensor]
) -> list[dict[str, Any]]:
    plan = soda_compile.plan(sensitivity, anchors=anchors)
    found = [run(pipe, kind, plan, guard, wanted) for guard in (None, *GUARDS)]
    for each in found[1:]:
        steps = round(each["computed_steps"])
        same = soda_compile.plan(sensitivity, anchors=steps)
        each["relative_l2_of_plan_with_as_many_steps"] = (
            run(pipe, kind, same, None, wanted)["relative_l2_mean"] if steps > anchors else found[0]["relative_l2_mean"]
        )
    return found


def table(report: Mapping[str, Any]) -> str:
    lines = [
        "# Drift watch and guard",
        "",
        f"{report['model']}; {report['generations']} generations of each kind, one seed each. The ratio is the",
        "error of the watched region's forecast at an anchor over what the calibration expects: its mean over anchors",
        "and generations, and the largest of a generation, median and range over generations. The error is relative L2",
        "of the last sample, mean and worst over generations. The last column is the mean error of an unguarded plan",
        "with as many computed steps in every generation.",
        "",
        "| generations | anchors | guard | ratio | largest ratio | tripped | computed steps | error | worst | plan |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        worst = sorted(row["worst_ratios"])
        same = row.get("relative_l2_of_plan_with_as_many_steps")
        cells = [
            row["kind"],
            row["anchors"],
            row["guard"] or "",
            f"{row['ratio_mean']:.2f}",
            f"{statistics.median(worst):.2f} ({worst[0]:.2f} to {worst[-1]:.2f})",
            f"{row['tripped_generations']} of {len(worst)}" if row["guard"] else "",
            f"{row['computed_steps']:.1f}",
            f"{row['relative_l2_mean']:.2%}",
            f"{row['relative_l2_worst']:.2%}",
            f"{same:.2%}" if same is not None else "",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main(
    out: Path = Path("benchmarks/results/drift_guard.json"),
    generations: int = 20,
    anchors: Annotated[list[int] | None, typer.Option()] = None,
    keep: Annotated[Path | None, typer.Option(help="Where the sensitivity is kept for the next run.")] = None,
) -> None:
    torch.set_num_threads(1)
    sensitivity = measured(load(), keep)
    loaded = load()
    pipe = Noised(loaded.transformer, loaded.scheduler)
    pipe.set_progress_bar_config(disable=True)
    report: dict[str, Any] = {
        "model": f"digits, DDIM, {STEPS} steps, calibrated at guidance 1.5; graphs run without Inductor",
        "generations": generations,
        "torch": torch.__version__,
        "rows": [],
    }
    for kind in KINDS:
        wanted = generate(pipe, kind, range(generations))
        for count in anchors or [12]:
            report["rows"] += rows(pipe, sensitivity, kind, count, wanted)
            write_atomic(out, json.dumps(report, indent=1).encode())
            write_atomic(out.with_suffix(".md"), table(report).encode())


if __name__ == "__main__":
    typer.run(main)
