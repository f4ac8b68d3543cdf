"""Whether plans for measured time take the time that was asked for, on the digits model and this machine.

    python benchmarks/time_targets.py --target 2 --target 2.5

The denoiser is profiled, plans are made for each target, compiled, and timed over whole trajectories in interleaved
rounds against a plan that computes everything. Ratios are medians over rounds.
"""

import functools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import soda_compile
from soda_compile.backend.entry import soda
from soda_compile.capture.forward import CompiledForward
from soda_compile.digits.pipeline import load
from soda_compile.measure import profiling
from soda_compile.storage.files import write_atomic

EVERYTHING = "everything"


def main(
    out: Path = Path("benchmarks/results/time_targets.json"),
    target: Annotated[list[float] | None, typer.Option(help="Speedups to plan for.")] = None,
    batch: int = 8,
    generations: Annotated[int, typer.Option(help="Calibration generations of 10 digits.")] = 2,
    rounds: int = 7,
    cpu_time: Annotated[
        bool, typer.Option(help="Count this process's CPU time: for a machine that is shared.")
    ] = False,
    sensitivity: Annotated[Path | None, typer.Option(help="Calibrated before; else it is measured here.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where profiles are kept.")] = None,
) -> None:
    clock = time.process_time if cpu_time else time.perf_counter
    profiling.time.perf_counter = clock  # type: ignore[attr-defined]
    pipe = load()
    model = pipe.transformer
    measured = soda_compile.Sensitivity.load(sensitivity) if sensitivity else _calibrated(pipe, generations)
    inputs = _inputs(batch)
    profile = soda_compile.profile(model, inputs, folder=folder)
    plans = _plans(measured, profile, target or [1.5, 2.0, 2.5, 3.0])
    seconds = _interleaved(model, plans, inputs, rounds, clock)
    rows = [_row(name, plan, seconds) for name, plan in plans.items()]
    for row in rows:
        typer.echo(", ".join(f"{key} {value}" for key, value in row.items() if key != "seconds"))
    data = {
        "device": profile.device,
        "clock": "CPU time of the process" if cpu_time else "wall clock",
        "batch": batch,
        "torch": torch.__version__,
        "profile": {"full_us": profile.full_us, "base_us": profile.base_us, "spread": profile.spread},
        "rows": rows,
    }
    write_atomic(out, (json.dumps(data, indent=1) + "\n").encode())


def _calibrated(pipe: Any, generations: int) -> soda_compile.Sensitivity:
    def generate(seed: int) -> Any:
        generators = [torch.Generator().manual_seed(1_000_000 + 10 * seed + k) for k in range(10)]
        return pipe(class_labels=list(range(10)), generator=generators, output_type="latent")

    return soda_compile.calibrate(pipe, generate, generations=generations)


def _inputs(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2 * batch, 1, 8, 8),
        "timestep": torch.full((2 * batch,), 500),
        "class_labels": torch.tensor([index % 10 for index in range(batch)] + [10] * batch),
        "return_dict": False,
    }


def _plans(
    measured: soda_compile.Sensitivity, profile: soda_compile.Profile, targets: Sequence[float]
) -> dict[str, soda_compile.Plan]:
    plans = {EVERYTHING: soda_compile.compute_all_plan(measured.info.regions, measured.info.steps)}
    for speedup in targets:
        plans[f"{speedup:g}x"] = soda_compile.plan(measured, speedup=speedup, profile=profile)
        plans[f"{speedup:g}x, unified"] = soda_compile.plan(
            measured, speedup=speedup, profile=profile, strategy=soda_compile.Unified()
        )
    return plans


def _interleaved(
    model: torch.nn.Module,
    plans: Mapping[str, soda_compile.Plan],
    inputs: Mapping[str, Any],
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, list[float]]:
    """Return how long a trajectory took under each plan, by round."""

    def compiled(plan: soda_compile.Plan) -> Callable[..., Any]:
        untimed = replace(plan, timesteps=None, timestep_input=None)  # every call has the same inputs here
        return CompiledForward(model, functools.partial(soda, options={"plan": untimed}))

    def trajectory(name: str) -> float:
        started = clock()
        with torch.no_grad(), soda_compile.trajectory(model):
            for _ in range(plans[name].steps):
                calls[name](**inputs)
        return clock() - started

    calls = {name: compiled(plan) for name, plan in plans.items()}
    for name in plans:
        trajectory(name)
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    for _ in range(rounds):
        for name in plans:
            seconds[name].append(trajectory(name))
    return seconds


def _row(name: str, plan: soda_compile.Plan, seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    told = dict(plan.method)
    return {
        "plan": name,
        "asked": told.get("speedup"),
        "predicted": told.get("speedup_predicted"),
        "measured": statistics.median(a / b for a, b in zip(seconds[EVERYTHING], seconds[name], strict=True)),
        "flop_speedup": 1 / (plan.flop_ratio or 1.0),
        "seconds": seconds[name],
    }


if __name__ == "__main__":
    typer.run(main)
