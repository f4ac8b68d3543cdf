"""Packages of the digits model: size, time to the first step, and time of a trajectory, on this machine.

    python benchmarks/packages.py measure

Every start is a process of its own that ends with its first denoiser call. Cold starts have empty compiler caches, warm
ones those of a cold start before. "eager" is the model's own start, the floor for all that need its class. All ways to
start take turns, as do the trajectories of the package and of the JIT, which change places in each round; what is
written is the median, the lowest and the highest. CPU seconds count what a process and its compilers use, whatever else
runs.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from soda_compile.storage.files import write_atomic

app = typer.Typer(add_completion=False)
SAMPLES = 64
PLAN, PACKAGE = "plan.json", "digits.soda.pt2"


def timed(command: list[str], cache: Path) -> dict[str, float]:
    """Seconds of a process and all that it starts: on the clock, and of CPU."""
    before, launched = os.times(), time.perf_counter()
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    subprocess.run([sys.executable, *command], env=environment, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"clock": round(time.perf_counter() - launched, 2), "cpu": round(cpu, 2)}


@app.command()
def measure(
    anchors: int = 12,
    starts: int = 3,
    cold_starts: Annotated[int, typer.Option(min=1)] = 2,
    rounds: int = 6,
    folder: Path | None = None,
    out: Path = Path("benchmarks/results/packages.json"),
) -> None:
    """Exports, starts every way, and times whole trajectories of the JIT and of the package.

    A folder that is given keeps plan and package; what is in it already is not made again.
    """
    with tempfile.TemporaryDirectory() as name:
        rows = measure_in(Path(name), folder or Path(name), anchors, (starts, cold_starts), rounds)
    write_atomic(out, json.dumps(rows, indent=1).encode())
    typer.echo(json.dumps(rows, indent=1))


def measure_in(caches: Path, folder: Path, anchors: int, starts: tuple[int, int], rounds: int) -> dict[str, Any]:
    import soda_compile

    if not (folder / PLAN).exists():
        timed([__file__, "prepare", str(folder), str(anchors)], caches / "prepare")
    rows: dict[str, Any] = {"samples": SAMPLES, "anchors": anchors, "load_average": os.getloadavg()}
    rows |= {"torch": version("torch"), "machine": platform.machine(), "cores": os.cpu_count()}
    if not (folder / PACKAGE).exists():
        files = ["--plan", str(folder / PLAN), "--out", str(folder / PACKAGE)]
        command = ["-c", "from soda_compile.cli import app; app()", "export", f"{__file__}:example", *files]
        rows["export_seconds"] = timed(command, caches / "export")
    package = soda_compile.packages.loading.open_package(folder / PACKAGE)
    sizes = {member: len(data) for member, data in package.members.items()}
    rows["package_bytes"] = package.path.stat().st_size
    rows["weights_bytes"] = sizes["extra/weights.safetensors"]
    rows["code_bytes"] = sum(size for member, size in sizes.items() if member.startswith("data/"))
    rows["pieces"] = len({member.split("/")[2] for member in sizes if member.startswith("data/")})
    rows["first_step_seconds"] = first_steps(folder, caches, *starts)
    command = [sys.executable, __file__, "trajectories", str(folder), str(rounds)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return rows | json.loads(printed.splitlines()[-1])


def first_steps(folder: Path, caches: Path, starts: int, cold_starts: int) -> dict[str, Any]:
    """Every way to start, in turn; a process ends with its first denoiser call."""
    taken: dict[str, list[dict[str, float]]] = {}
    for number in range(max(starts, cold_starts)):
        for method in ("eager", "package", "torch.compile", "soda"):
            compiles = method in ("torch.compile", "soda")
            cold = [", cold"] if number < cold_starts else []
            for kind in [*cold, ", warm"] if compiles else [""]:
                if kind != ", cold" and number >= starts:
                    continue
                cache = caches / f"{method}-{number % cold_starts}"
                seconds = timed([__file__, "first-step", method, str(folder)], cache)
                taken.setdefault(method + kind, []).append(seconds)
                typer.echo(f"{method + kind:22} {seconds}", err=True)
    return {
        method: {clock: spread([row[clock] for row in rows]) for clock in ("clock", "cpu")}
        for method, rows in taken.items()
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest, and how many."""
    shown = {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
    return {**{name: round(value, 3) for name, value in shown.items()}, "count": len(values)}


def example() -> tuple[Any, dict[str, Any]]:
    from soda_compile.digits.example import example as small

    return small(SAMPLES)


@app.command(hidden=True)
def prepare(folder: Path, anchors: int) -> None:
    """Calibrates and plans."""
    import torch

    import soda_compile
    from soda_compile.digits.pipeline import load

    pipe = load()
    sensitivity = soda_compile.calibrate(
        pipe, lambda seed: pipe([3, 7], generator=torch.Generator().manual_seed(seed)), generations=1
    )
    soda_compile.plan(sensitivity, anchors=anchors).save(folder / PLAN)


@app.command("first-step", hidden=True)
def first_step(method: str, folder: Path) -> None:
    """Runs the first step."""
    import torch

    if method == "package":
        import soda_compile

        denoiser = soda_compile.load(folder / PACKAGE)
        inputs: dict[str, Any] = {
            "hidden_states": torch.zeros(2 * SAMPLES, 1, 8, 8),
            "timestep": torch.full((2 * SAMPLES,), int((denoiser.plan.timesteps or (0,))[0])),
            "class_labels": torch.zeros(2 * SAMPLES, dtype=torch.int64),
        }
    else:
        model, inputs = example()
        inputs["timestep"].fill_(int(json.loads((folder / PLAN).read_text())["timesteps"][0]))
        backend = {"eager": "eager", "torch.compile": "inductor"}.get(method, method)
        options = {"options": {"plan": str(folder / PLAN)}} if method == "soda" else {}
        denoiser = model if method == "eager" else torch.compile(model, backend=backend, dynamic=False, **options)
    with torch.no_grad():
        denoiser(**inputs)


@app.command(hidden=True)
def trajectories(folder: Path, rounds: int) -> None:
    """Prints the seconds of whole trajectories, JIT and package in turn, and whether they agree in every bit."""
    import torch

    import soda_compile

    begun = time.perf_counter()
    package = soda_compile.load(folder / PACKAGE)
    loaded = time.perf_counter() - begun
    model, inputs = example()
    plan = str(folder / PLAN)
    methods = {"package": package, "jit": torch.compile(model, backend="soda", options={"plan": plan}, dynamic=False)}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    calls = [inputs["timestep"].fill_(int(value)).clone() for value in package.plan.timesteps or ()]
    equal = True
    for number in range(rounds + 1):
        outputs = {}
        for name in sorted(methods, reverse=number % 2 == 1):
            clock, cpu = time.perf_counter(), time.process_time()
            with torch.no_grad():
                outputs[name] = [methods[name](**{**inputs, "timestep": value}).sample for value in calls]
            if number:  # the first compiles
                taken[name].append((time.perf_counter() - clock, time.process_time() - cpu))
        equal &= all(torch.equal(a, b) for a, b in zip(*outputs.values(), strict=True))
    result: dict[str, Any] = {"load_seconds": loaded, "equal": equal, "trajectory_seconds": {}, "jit_over_package": {}}
    for index, kind in enumerate(("clock", "cpu")):
        ratios = [jit[index] / ours[index] for jit, ours in zip(taken["jit"], taken["package"], strict=True)]
        result["jit_over_package"][kind] = spread(ratios)
        for name in methods:
            values = spread([row[index] for row in taken[name]])
            result["trajectory_seconds"].setdefault(name, {})[kind] = values
    typer.echo(json.dumps(result))


if __name__ == "__main__":
    app()
