"""All that only a GPU can show, in one command and a given time: the tests of tests/cuda, then the suite by model.

python -m benchmarks.gpu_checklist
python -m benchmarks.gpu_checklist --minutes 60 --layers 1 --models dit,flux,sd3,wan

The suite writes ``results/suite_cuda.json`` and ``.md`` after each model; what ran, and what there was no time for,
stands in ``results/gpu_checklist.md``.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.suite.machine import in_child, look, versions
from benchmarks.suite.table import grid
from soda_compile.storage.files import write_atomic

RESULTS = Path("benchmarks/results")
PLAIN = "torch.compile"
METHODS = f"{PLAIN}$;soda, everything$;soda, reuse, interval 4$;soda ahead, reuse, interval 4$"
OUTCOME = re.compile(r"% *\] (PASSED|FAILED|ERROR|SKIPPED) tests/")  # as xdist tells, each once


@dataclass(frozen=True)
class Part:
    """One command and what became of it.

    Attributes:
        name: What it shows.
        outcome: In words.
        seconds: That it took.
        good: Whether it ended by itself without a failure.
    """

    name: str
    outcome: str
    seconds: float
    good: bool


def run(command: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Run a command, and end it and all that it started when the time is over; return its status and output.

    The status is None where there was no time, or not enough.
    """
    if seconds <= 0:
        return None, ""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]
    return process.returncode, output


def tests(seconds: float, workers: int) -> Part:
    """Run the tests of tests/cuda."""
    started = time.perf_counter()
    status, output = run([sys.executable, "-m", "pytest", "tests/cuda", "-v", "-n", str(workers)], seconds)
    return Part("tests/cuda", outcome_of(status, output), time.perf_counter() - started, status == 0)


def outcome_of(status: int | None, output: str) -> str:
    """Return how many tests ended how, as far as they came."""
    counted = Counter(OUTCOME.findall(output))
    found = ", ".join(f"{number} {word.lower()}" for word, number in sorted(counted.items())) or "nothing ran"
    ends = {None: "; the time was over", 0: "", 1: ""}
    return found + ends.get(status, f"; pytest ended with {status}: {output[-300:].strip()}")


def speed(model: str, seconds: float, layers: float, beside: int) -> Part:
    """Measure one model of the suite."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.suite", "--device", "cuda", "--models", model, "--methods", METHODS]
    command += ["--baselines", PLAIN, "--rounds", "3", "--no-warm", "--no-host"]
    command += ["--layers", str(layers), "--beside", str(beside)]
    status, output = run(command, seconds)
    failed = f"ended with {status}: {output[-300:].strip()}"
    outcome = {None: "the time was over", 0: "written to suite_cuda.md"}.get(status, failed)
    return Part(f"suite, {model}", outcome, time.perf_counter() - started, status == 0)


def text(device: str, parts: Sequence[Part], command: str) -> str:
    """Return the page about what ran."""
    rows = [[part.name, part.outcome.replace("\n", " "), f"{part.seconds:.0f}"] for part in parts]
    about = ", ".join(f"{name} {number}" for name, number in versions().items())
    return "\n".join(
        ["# On a GPU", "", f"{device}; {about}. `{command}`", "", *grid(("part", "outcome", "seconds"), rows), ""]
    )


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="For everything.")] = 10,
    models: Annotated[str, typer.Option(help="Of the suite, with commas, in this order.")] = "dit,flux,pixart,sd3",
    layers: Annotated[float, typer.Option(min=0.01, max=1, help="Share of each model's layers.")] = 0.2,
    share: Annotated[float, typer.Option(min=0, max=1, help="Of the time that the tests may take.")] = 0.5,
    out: Path = RESULTS / "gpu_checklist.md",
) -> None:
    """Run the tests and the suite on the GPU, and write what they show."""
    found = in_child(look, "cuda")
    if "reason" in found:
        raise typer.BadParameter(f"there is no GPU to check: {found['reason']}")
    end = time.perf_counter() + 60 * minutes
    cores = len(os.sched_getaffinity(0))
    parts: list[Part] = []

    def add(part: Part) -> None:
        parts.append(part)
        typer.echo(f"{part.name}: {part.outcome} ({part.seconds:.0f} s)", err=True)
        command = " ".join(["python -m benchmarks.gpu_checklist", *sys.argv[1:]])
        write_atomic(out, text(found["device"], parts, command).encode())

    if share:
        add(tests(60 * minutes * share, max(1, cores // 2)))
    for model in models.split(","):
        add(speed(model, end - time.perf_counter(), layers, max(1, cores // 2)))
    if not all(part.good for part in parts):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
