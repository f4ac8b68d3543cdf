"""How close plans that compute N of a generation's steps come, against other samplers that take N steps.

python -m benchmarks.equal_evaluations --models digits,fashion_dit

Both call the whole denoiser N times. Ours also runs the ends of the model at the steps between: what that costs is told
as FLOPs. Ours is the closest plan of those that were tried, with fitted weights; of the samplers, each with the
spacings of timesteps that suit few steps, the closest one on the same calibration seeds. All are scored on fresh ones.
Rewritten graphs run operator by operator, without Inductor. Results of other models in the file are kept, and those of
the same model with other N, if seeds and versions are the same.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import soda_compile
from benchmarks.leaderboard.fewer_steps import methods
from benchmarks.leaderboard.measures import reference
from benchmarks.leaderboard.models import MODELS, models_named
from benchmarks.leaderboard.ours import Measured, Planned, install
from benchmarks.leaderboard.statistics import mean_interval, paired_ratio
from benchmarks.leaderboard.subject import CALIBRATION, Subject
from benchmarks.leaderboard.trial import relative, run
from benchmarks.leaderboard.tuning import Search, Setting, Tried, Tuner
from benchmarks.paired import keep, load

OURS = "ours"


def measure(found: Measured, count: int, samples: int) -> dict[str, Any]:
    """Return what was measured for a model at a number of evaluations: a row for each method."""
    subject = found.subject
    return {
        "title": subject.title,
        "seeds": f"0 to {samples - 1}",
        "calibration": f"{found.samples} seeds from {CALIBRATION} on, and as many more for our sensitivity",
        "torch": torch.__version__,
        "steps": subject.steps,
        "rows": _rows(found, count, samples),
    }


def beside(earlier: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was found with the rows of other numbers of evaluations, where these were measured alike."""
    alike = {**earlier, "rows": []} == {**found, "rows": []}
    measured = {row["evaluations"] for row in found["rows"]}
    kept = [row for row in earlier["rows"] if row["evaluations"] not in measured] if alike else []
    return {**found, "rows": sorted([*kept, *found["rows"]], key=lambda row: int(row["evaluations"]))}


def _rows(found: Measured, count: int, samples: int) -> list[dict[str, Any]]:
    """Return the row of ours and those of all samplers with so many evaluations."""
    subject = found.subject
    seeds = range(CALIBRATION, CALIBRATION + found.samples)
    wanted, tuned_to = reference(subject, 0, samples), reference(subject, seeds[0], len(seeds))

    def evaluate(setting: Setting) -> tuple[float, float]:
        trial = run(subject, setting.install(subject), seeds, wanted.flops)
        return trial.cost, float(relative(trial.latents, tuned_to.latents).mean())

    rows = [_row(subject, OURS, *_ours(found, count), wanted, samples)]
    for method in methods(subject):
        best = _best(Tuner(evaluate), method.searches(subject, seeds), count, subject.steps)
        if best is not None:
            name = method.name.removeprefix("fewer steps, ")
            rows.append(_row(subject, name, best.setting.text, best.setting.install(subject), wanted, samples))
    ours = rows[0]["relative_l2"]
    return [{"evaluations": count, **row, "ratio_to_ours": paired_ratio(row["relative_l2"], ours)} for row in rows]


def _best(tuner: Tuner, searches: Sequence[Search], count: int, steps: int) -> Tried | None:
    """Return the closest setting of as many steps as there may be evaluations; of half as many, if each takes two."""
    best = None
    for each in (count, count // 2):
        # Settings are of ``steps`` steps, of one less, and so on.
        best = best or tuner.best([search[steps - each :][:1] for search in searches], count / steps + 1e-6)
    return best


def _ours(found: Measured, count: int) -> tuple[str, Any]:
    goal = soda_compile.Goal(anchors=count)
    sensitivity, _ = found.sensitivity(goal, simulated=True)
    closest = soda_compile.closest_plan(found.recording(), sensitivity, goal)
    return closest.name, install(Planned(closest.plan, closest.name, 0.0), found.subject)


def _row(subject: Subject, name: str, setting: str, installed: Any, wanted: Any, samples: int) -> dict[str, Any]:
    try:
        trial = run(subject, installed, range(samples), wanted.flops)
    finally:
        installed.close()
    errors = [round(float(each), 7) for each in relative(trial.latents, wanted.latents)]
    return {"method": name, "setting": setting, "cost": trial.cost, "relative_l2": errors}


def text(report: Mapping[str, Any]) -> str:
    """Return the table of all models."""
    lines = [
        "# Computed steps against steps",
        "",
        "Relative L2 of the last sample to the original's on fresh seeds. Ours computes so many of the original's",
        "steps; others take so many steps. FLOPs are over the original's: ours also runs the ends of the model at the",
        "steps between. Ratios are paired by sample (geometric mean); intervals are 95% bootstraps over samples. All",
        "are tuned on the same calibration seeds, and our sensitivity is of as many more.",
        "`python -m benchmarks.equal_evaluations`.",
        "",
        "| model | evaluations | method | setting | FLOPs | relative L2 | over ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in report.items():
        lines += [_line(name, found, row) for row in sorted(found["rows"], key=_place)]
    lines += ["", "## The closest of fewer steps, over ours", ""]
    return "\n".join([*lines, *_best_lines(report), ""])


def _place(row: Mapping[str, Any]) -> tuple[int, float]:
    return row["evaluations"], sum(row["relative_l2"])


def _line(name: str, found: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    errors = row["relative_l2"]
    low, high = mean_interval(errors)
    return (
        f"| {name} | {row['evaluations']} of {found['steps']} | {row['method']} | {row['setting']} | "
        f"{row['cost']:.3f} | {sum(errors) / len(errors):.2%} ({low:.2%}–{high:.2%}) | {_times(row)} |"
    )


def _best_lines(report: Mapping[str, Any]) -> Iterator[str]:
    for name, found in report.items():
        parts = []
        for count in sorted({row["evaluations"] for row in found["rows"]}):
            others = [row for row in found["rows"] if row["evaluations"] == count and row["method"] != OURS]
            best = min(others, key=_place)
            parts.append(f"{count}: {_times(best)} ({best['method']})")
        yield f"- {name}, {found['seeds']}: " + ", ".join(parts)


def _times(row: Mapping[str, Any]) -> str:
    ratio, low, high = row["ratio_to_ours"]
    return f"{ratio:.2f} ({low:.2f}–{high:.2f})"


def main(
    models: Annotated[str, typer.Option(help="Names, with commas.")] = ",".join(MODELS),
    evaluations: Annotated[str, typer.Option(help="Numbers of evaluations, with commas.")] = "6,12,18",
    samples: Annotated[int, typer.Option(min=2, help="Fresh seeds.")] = 100,
    calibration_samples: Annotated[int, typer.Option(min=2, help="Other seeds, to tune on.")] = 16,
    out: Path = Path("benchmarks/results/equal_evaluations.json"),
) -> None:
    """Score ours and fewer steps for each model."""
    os.environ.setdefault("SODA_COMPILE_LOWERING", "eager")
    torch.set_num_threads(1)
    counts = [int(count) for count in evaluations.split(",")]
    for name in models_named(models):
        with tempfile.TemporaryDirectory() as folder:
            measured = Measured(MODELS[name]("cpu"), Path(folder), calibration_samples)
            for count in counts:
                found = measure(measured, count, samples)
                keep(out, name, beside(load(out).get(name, {}), found), text)
                typer.echo(f"{name}: {count} evaluations done", err=True)


if __name__ == "__main__":
    typer.run(main)
