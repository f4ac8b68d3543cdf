"""Runs the suite: everything this machine can, or a part of it.

python -m benchmarks.suite
python -m benchmarks.suite --models flux,wan --methods "soda;cache-dit" --rounds 3
"""

import importlib
import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.suite.configs import Config, configs
from benchmarks.suite.machine import in_child, look, precompile_headers, sources_digest, versions
from benchmarks.suite.methods import Method, methods
from benchmarks.suite.rounds import measure
from benchmarks.suite.table import markdown
from benchmarks.suite.worker import Job
from soda_compile.storage.files import write_atomic

RESULTS = Path("benchmarks/results")
PLAIN = "torch.compile"
ALL_METHODS = ("dit", "flux")
CORE = ("eager", "torch.compile", "soda, everything", "soda, reuse, interval 4", "soda, reuse, interval 8",
        "soda, forecast", "soda ahead", "cache-dit, DBCache, compiled", "diffusers, TaylorSeer, compiled")  # fmt: skip


def main(
    models: Annotated[str, typer.Option(help="Names of models, with commas; all by default.")] = "",
    only: Annotated[
        str,
        typer.Option("--methods", help="Beginnings of names of methods, with semicolons; '*' for all."),
    ] = "",
    rounds: int = 5,
    steps: int = 12,
    device: str = "auto",
    threads: Annotated[int, typer.Option(help="Of the CPU; all cores by default.")] = 0,
    warm: Annotated[bool, typer.Option(help="Start compiled methods a second time.")] = True,
    host: Annotated[bool, typer.Option(help="Profile the host's time.")] = True,
    beside: Annotated[int, typer.Option(min=1, help="Methods that compile at once; rounds never do.")] = 1,
    baselines: Annotated[
        str, typer.Option(help="Modes of plain torch.compile to run, by name with semicolons; '*' for all.")
    ] = "*",
    fresh: Annotated[bool, typer.Option(help="Drop earlier results instead of adding to them.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file; the Markdown table goes beside it.")] = None,
) -> None:
    """Measures and writes after each model. Earlier results of the same machine, versions and sources stay.

    Without --methods, every method runs on DiT-XL/2 and FLUX, and a core of them on the others.
    """
    found = in_child(look, device)
    if "reason" in found:
        raise typer.BadParameter(f"device {device}: {found['reason']}")
    if found["type"] == "cpu" and (reason := in_child(precompile_headers).get("reason")):
        raise typer.BadParameter(f"device {device}: Inductor cannot compile: {reason}")
    path = out or RESULTS / f"suite_{found['type']}.json"
    threads = threads or len(os.sched_getaffinity(0))
    report = _begin(path, found, fresh)
    started = time.perf_counter()
    for config in _chosen(models, configs(found["type"])):
        typer.echo(f"{config.title} ({time.perf_counter() - started:.0f} s)", err=True)
        rows = _methods(only, baselines, config, found["type"])
        report["models"][config.name] = _model(config, rows, found, rounds, steps, threads, warm, beside)
        _write(path, report)
    if host:
        from benchmarks.suite.host import profile_host

        typer.echo(f"host ({time.perf_counter() - started:.0f} s)", err=True)
        report["host"] = in_child(profile_host, found["type"], steps)
        _write(path, report)
    typer.echo(f"{path.with_suffix('.md')} ({time.perf_counter() - started:.0f} s)", err=True)


def _begin(path: Path, found: dict[str, Any], fresh: bool) -> dict[str, Any]:
    about = {
        "device": found["device"], "type": found["type"], "versions": versions(), "seeds": {"weights": 0, "inputs": 1},
        "sources": sources_digest(), "notes": _notes(found["type"]),
    }  # fmt: skip
    if path.exists() and not fresh:
        kept: dict[str, Any] = json.loads(path.read_text())
        if kept["about"] == about:
            return kept
        typer.echo(f"{path} is of another machine, other versions or other sources, and will be replaced", err=True)
    return {"about": about, "models": {}, "host": {}}


def _notes(kind: str) -> list[str]:
    notes = [
        "FasterCache has no row: it drops one half of guidance and blends frequencies, so no mask of computed steps is "
        "comparable to it."
    ]
    if kind == "cpu":
        notes.append("On a CPU mode reduce-overhead compiles what the default does, so it has no rows of its own.")
    return notes


def _chosen(names: str, known: dict[str, Config]) -> list[Config]:
    wanted = names.split(",") if names else list(known)
    for name in wanted:
        if name not in known:
            raise typer.BadParameter(f"model {name!r} is not one of {', '.join(known)}", param_hint="--models")
    return [known[name] for name in wanted]


def _methods(only: str, baselines: str, config: Config, device: str) -> list[Method]:
    """Those that are asked for, and plain torch.compile in any case: it is what others are held to."""
    known = methods(device)
    starts = tuple(only.split(";")) if only else ("*",) if config.name in ALL_METHODS else CORE
    for start in starts:
        if start != "*" and not any(name.startswith(start) for name in known):
            listed = "; ".join(known)
            raise typer.BadParameter(f"no method begins with {start!r}; there are: {listed}", param_hint="--methods")
    plain = {name for name, method in known.items() if method.group == "torch.compile"}
    if baselines != "*":
        chosen = {PLAIN, *baselines.split(";")}
        if unknown := chosen - plain:
            listed = "; ".join(sorted(plain))
            raise typer.BadParameter(f"{'; '.join(unknown)}: there are {listed}", param_hint="--baselines")
        plain, known = chosen, {name: known[name] for name in known if name not in plain - chosen}
    return [method for name, method in known.items() if "*" in starts or name.startswith(starts) or name in plain]


def _model(
    config: Config,
    rows: list[Method],
    found: dict[str, Any],
    rounds: int,
    steps: int,
    threads: int,
    warm: bool,
    beside: int,
) -> dict[str, Any]:
    _import_for(config)
    about = {"title": config.title, "batch": config.batch, "large": config.large}
    job = Job(config, "", found["type"], steps, threads, "", "")
    if found["type"] == "cuda":
        need = in_child(_needed_bytes, config)
        if need > found["memory_bytes"]:
            gib = 2**30
            reason = f"it needs about {need / gib:.0f} GiB, and {found['memory_bytes'] / gib:.0f} GiB are free"
            return {**about, "reason": reason}
    settings = {
        "steps": steps, "rounds": rounds, "threads": threads, "dtype": str(job.dtype).removeprefix("torch."),
        "load_average": round(os.getloadavg()[0], 2),
    }  # fmt: skip

    def tell(line: str) -> None:
        typer.echo(line, err=True)

    measured = measure(rows, job, rounds, found["memory_bytes"], warm, tell, beside)
    return {**about, "settings": settings, "rows": measured}


def _import_for(config: Config) -> None:
    """Imports what every row needs before its process is forked: imports take seconds, and are no compilation."""
    for module in ("torch._dynamo", "torch._inductor.compile_fx", "soda_compile.acceleration.accelerate"):
        importlib.import_module(module)
    getattr(importlib.import_module("diffusers"), config.cls)


def _needed_bytes(config: Config) -> float:
    """Weights in bfloat16, and a quarter for what runs through them."""
    from benchmarks.suite.models import make_model

    weights = sum(parameter.numel() for parameter in make_model(config, "meta", torch.bfloat16).parameters())
    return 1.25 * 2 * weights + 2 * 2**30


def _write(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(report, indent=1) + "\n").encode())
    write_atomic(path.with_suffix(".md"), markdown(report).encode())


if __name__ == "__main__":
    typer.run(main)
