"""Packages of the digits model: size, time to the first step, and time of a trajectory, on this machine.

    python benchmarks/artifacts.py

Every start is a process of its own, timed from its launch to the end of its first denoiser call. Cold starts have empty
compiler caches, warm ones those of the cold start before. The model's own start, without compiling, is the floor for
all that need the model's class.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import typer
from latency import RESULTS, machine

from soda_compile.files import write_atomic

app = typer.Typer(add_completion=False)
SAMPLES = 64


def started(method: str, folder: Path, cache: Path) -> float:
    """Seconds from launching a process to its first finished step."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    launched = time.time()
    command = [sys.executable, __file__, "first-step", method, str(folder)]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return float(printed.splitlines()[-1]) - launched


@app.command()
def measure(anchors: int = 12, rounds: int = 3, out: Path = RESULTS / "artifacts.json") -> None:
    """Exports, starts every way, and times whole trajectories of the JIT and of the package."""
    import soda_compile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, __file__, "prepare", name, str(anchors)], check=True)
        begun = time.perf_counter()
        target = f"{__file__}:example"
        command = [sys.executable, "-c", "from soda_compile.cli import app; app()", "export", target]
        files = ["--plan", str(folder / "plan.json"), "--out", str(folder / "digits.soda.pt2")]
        cold = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "export")}
        subprocess.run([*command, *files], check=True, env=cold, capture_output=True)
        rows: dict[str, Any] = {"export_seconds": time.perf_counter() - begun}
        package = soda_compile.artifacts.loading.open_package(folder / "digits.soda.pt2")
        sizes = {member: len(data) for member, data in package.members.items()}
        rows["package_bytes"] = package.path.stat().st_size
        rows["weights_bytes"] = sizes["extra/weights.safetensors"]
        rows["code_bytes"] = sum(size for member, size in sizes.items() if member.startswith("data/"))
        rows["pieces"] = len({member.split("/")[2] for member in sizes if member.startswith("data/")})
        rows["first_step_seconds"] = first_steps(folder, rounds)
        printed = subprocess.run(
            [sys.executable, __file__, "trajectories", name, str(rounds)], check=True, capture_output=True, text=True
        ).stdout
        rows |= json.loads(printed.splitlines()[-1])
    typer.echo(json.dumps(rows, indent=1))
    result = {"samples": SAMPLES, "anchors": anchors, "load_average": os.getloadavg(), **machine(), **rows}
    write_atomic(out, json.dumps(result, indent=1).encode())


def first_steps(folder: Path, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {}
    for number in range(rounds):
        for method in ("eager", "package", "torch.compile", "soda"):
            cache = folder / f"{method}-{number}"
            kinds = ("",) if method in ("eager", "package") else (", cold", ", warm")
            for kind in kinds:
                seconds.setdefault(method + kind, []).append(started(method, folder, cache))
                typer.echo(f"{method + kind:22} {seconds[method + kind][-1]:6.1f} s", err=True)
    return seconds


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
    soda_compile.plan(sensitivity, anchors=anchors).save(folder / "plan.json")


@app.command("first-step", hidden=True)
def first_step(method: str, folder: Path) -> None:
    """Prints the time at which the first step was finished."""
    import torch

    if method == "package":
        import soda_compile

        denoiser = soda_compile.load(folder / "digits.soda.pt2")
        inputs: dict[str, Any] = {
            "hidden_states": torch.zeros(2 * SAMPLES, 1, 8, 8),
            "timestep": torch.full((2 * SAMPLES,), int((denoiser.plan.timesteps or (0,))[0])),
            "class_labels": torch.zeros(2 * SAMPLES, dtype=torch.int64),
        }
    else:
        model, inputs = example()
        inputs["timestep"].fill_(int(json.loads((folder / "plan.json").read_text())["timesteps"][0]))
        backend = {"eager": "eager", "torch.compile": "inductor"}.get(method, method)
        options = {"options": {"plan": str(folder / "plan.json")}} if method == "soda" else {}
        denoiser = model if method == "eager" else torch.compile(model, backend=backend, dynamic=False, **options)
    with torch.no_grad():
        denoiser(**inputs)
    typer.echo(time.time())


@app.command(hidden=True)
def trajectories(folder: Path, rounds: int) -> None:
    """Prints the seconds of whole trajectories, JIT and package in turn, and whether they agree in every bit."""
    import torch

    import soda_compile

    begun = time.perf_counter()
    package = soda_compile.load(folder / "digits.soda.pt2")
    loaded = time.perf_counter() - begun
    model, inputs = example()
    plan = str(folder / "plan.json")
    methods = {"package": package, "jit": torch.compile(model, backend="soda", options={"plan": plan}, dynamic=False)}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    equal = True
    for number in range(rounds + 1):
        outputs = {}
        for name, denoiser in methods.items():
            begun = time.perf_counter()
            with torch.no_grad():
                calls = [inputs["timestep"].fill_(int(value)).clone() for value in package.plan.timesteps or ()]
                outputs[name] = [denoiser(**{**inputs, "timestep": value}).sample for value in calls]
            if number:  # the first compiles
                seconds[name].append(time.perf_counter() - begun)
        equal &= all(torch.equal(a, b) for a, b in zip(*outputs.values(), strict=True))
    ratio = statistics.median(a / b for a, b in zip(seconds["jit"], seconds["package"], strict=True))
    result = {"load_seconds": loaded, "equal": equal, "trajectory_seconds": seconds, "jit_over_package": ratio}
    typer.echo(json.dumps(result))


if __name__ == "__main__":
    app()
