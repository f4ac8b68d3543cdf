"""How close accelerated generations stay to the original at equal cost: ours, and what others published.

python -m benchmarks.leaderboard
python -m benchmarks.leaderboard --models digits --methods "ours;FORA;TaylorSeer" --costs 0.5,0.25 --samples 100
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

os.environ.setdefault("SODA_COMPILE_LOWERING", "eager")
os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "ERROR")

from benchmarks.leaderboard import store
from benchmarks.leaderboard.curves import draw
from benchmarks.leaderboard.jobs import Task, missing, run_all, run_task
from benchmarks.leaderboard.models import MODELS, models_named
from benchmarks.leaderboard.ours import OURS
from benchmarks.leaderboard.rows import Scoring, peers
from benchmarks.leaderboard.subject import CALIBRATION, Subject
from benchmarks.leaderboard.table import markdown
from benchmarks.leaderboard.trial import original, seconds
from benchmarks.leaderboard.tuning import reason
from soda_compile.storage.files import write_atomic

COSTS = "0.5,0.36,0.24,0.16,0.12"
GRACE = 20.0  # seconds that a row may go on after the time is over


def main(
    models: Annotated[str, typer.Option(help="Names of models, with commas; all by default.")] = "",
    methods: Annotated[str, typer.Option(help="Beginnings of names of methods, with semicolons; all by default.")] = "",
    costs: Annotated[str, typer.Option(help="Shares of the original's FLOPs, with commas.")] = COSTS,
    samples: Annotated[int, typer.Option(min=2, help="Fresh seeds that are scored.")] = 100,
    calibration_samples: Annotated[int, typer.Option(min=2, help="Other seeds that methods are tuned on.")] = 10,
    limit: Annotated[float, typer.Option("--seconds", help="No row is begun after so long.")] = 1e6,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at once.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each process.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    frechet: Annotated[int, typer.Option(help="Samples for the Fréchet distance, such as 1000; 0 for none.")] = 0,
    frechet_costs: Annotated[str, typer.Option(help="Budgets it is measured at, with commas.")] = "0.24",
    timed: Annotated[int, typer.Option(help="Samples of the generation that is timed; 0 for none.")] = 10,
    fresh: Annotated[bool, typer.Option(help="Drop earlier results instead of adding to them.")] = False,
    out: Annotated[Path, typer.Option(help="JSON file; table and charts go beside it.")] = Path(
        "benchmarks/results/leaderboard.json"
    ),
) -> None:
    """Tune every method for each budget on calibration seeds, score it on fresh ones, and write as rows are done."""
    wanted, shares = models_named(models), _numbers("--costs", costs)
    scored_apart = _numbers("--frechet-costs", frechet_costs) if frechet else ()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads)
    if fresh:
        out.unlink(missing_ok=True)
    deadline = time.time() + limit
    with tempfile.TemporaryDirectory() as folder:
        scoring = Scoring(samples, calibration_samples, frechet, scored_apart, folder, timed, deadline)
        tasks: list[tuple[float, Task]] = []
        for name in wanted:
            try:
                subject = MODELS[name](device)
            except (ImportError, OSError) as error:
                typer.echo(f"{name} is left out: {reason(error)}", err=True)
                continue
            store.describe(out, name, _facts(subject, scoring))
            chosen = _methods(subject, methods)
            own = [(method, (cost,)) for cost in shares for method in chosen if method in OURS]
            others = [(method, shares) for method in chosen if method not in OURS]
            # In turn, as all of ours wait for one of them to measure the model.
            for group in (own, others):
                for place, (method, part) in enumerate(group):
                    task = Task(name, method, part, device, threads, scoring, out)
                    tasks.append((place / len(group), task))
        if not tasks:
            raise typer.BadParameter(f"none of the models can be loaded: {', '.join(wanted)}")
        _run(_in_turn(tasks, wanted), jobs)
        _write(out)
    typer.echo(f"wrote {out} and beside it the table and the charts")


def _in_turn(tasks: list[tuple[float, Task]], models: list[str]) -> list[Task]:
    """Model after model, and in each by the place in the group."""
    return [task for _, task in sorted(tasks, key=lambda each: (models.index(each[1].model), each[0]))]


def _run(tasks: list[Task], jobs: int) -> None:
    if jobs > 1:
        run_all(tasks, jobs, GRACE, lambda line: typer.echo(line, err=True))
        return
    for task in tasks:
        started = time.time()
        try:
            run_task(task)
        except Exception as error:  # one method does not end the run
            missing(task, reason(error))
        _write(task.out)
        typer.echo(f"{task.model}: {task.method}, {time.time() - started:.0f} s", err=True)


def _methods(subject: Subject, beginnings: str) -> list[str]:
    names = [*OURS, *peers(subject)]
    starts = [each.strip() for each in beginnings.split(";") if each.strip()]
    lost = [each for each in starts if not any(name.startswith(each) for name in names)]
    if lost:
        raise typer.BadParameter(f"no method begins with {lost[0]!r}; there are {'; '.join(names)}")
    return [name for name in names if not starts or name.startswith(tuple(starts))]


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(each) for each in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{option} {text!r}: {error}") from None
    if not all(0 < each <= 1 for each in found):
        raise typer.BadParameter(f"{option} {text!r}: shares lie between 0 and 1")
    return found


def _facts(subject: Subject, scoring: Scoring) -> dict[str, Any]:
    import diffusers

    device = torch.cuda.get_device_name() if subject.device.type == "cuda" else "CPU"
    seeds = range(scoring.timed)
    return {
        "title": subject.title,
        "seconds": seconds(subject, original(subject), seeds) if scoring.timed else None,
        "settings": {
            "device": device,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "scored seeds": f"0 to {scoring.samples - 1}, {subject.batch} in a batch",
            "calibration": f"{scoring.calibration} seeds from {CALIBRATION} on, and as many more for our sensitivity",
            "timed": f"{scoring.timed} samples in one batch, the fastest of three; processor time on a CPU",
        },
    }


def _write(out: Path) -> None:
    report = store.load(out)
    write_atomic(out.with_suffix(".md"), markdown(report).encode())
    for name in report["models"]:
        if any(row["model"] == name and "reason" not in row for row in report["rows"]):
            draw(report, name, out.with_name(f"{out.stem}_{name}.png"))


if __name__ == "__main__":
    typer.run(main)
