"""Latency over plain torch.compile, and compile time, on this machine.

    python benchmarks/latency.py digits --batch 64
    python benchmarks/latency.py compile-time --layers 28 --hidden 384

Rounds are interleaved: each runs every method once over the whole trajectory; ratios are medians over rounds.
Every compilation runs in a process of its own: cold with empty caches, then warm with those that the cold one left.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

import soda_compile
from soda_compile.digits.pipeline import load
from soda_compile.storage.files import write_atomic

app = typer.Typer(add_completion=False)
RESULTS = Path("benchmarks/results")


def machine() -> dict[str, Any]:
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}


@app.command()
def digits(batch: int = 64, rounds: int = 5, out: Path = RESULTS / "digits_latency.json") -> None:
    """The denoiser of the digits model over 50 steps, with guidance: 2 * batch rows a call."""
    pipe = load()

    def generate(seed: int) -> Any:
        return pipe(class_labels=list(range(4)), generator=torch.Generator().manual_seed(seed))

    sensitivity = soda_compile.calibrate(pipe, generate, generations=1)
    everything = soda_compile.compute_all_plan(sensitivity.info.regions, sensitivity.info.steps)
    plans = {"soda, everything computed": everything}
    plans |= {f"soda, {anchors} anchors": soda_compile.plan(sensitivity, anchors=anchors) for anchors in (18, 12)}
    model = pipe.transformer
    methods = {"torch.compile": torch.compile(model, fullgraph=True, dynamic=False)}
    for name, plan in plans.items():
        options = {"plan": plan}
        methods[name] = torch.compile(model, backend="soda", options=options, fullgraph=True, dynamic=False)
    latents = torch.randn(2 * batch, 1, 8, 8)
    labels = torch.cat([torch.arange(batch) % 10, torch.full((batch,), 10)])
    timesteps = [torch.full((2 * batch,), int(value)) for value in sensitivity.info.timesteps or ()]

    def trajectory(call: Callable[..., Any]) -> float:
        started = time.perf_counter()
        with torch.no_grad():
            for timestep in timesteps:
                call(latents, timestep=timestep, class_labels=labels, return_dict=False)
        return time.perf_counter() - started

    for call in methods.values():
        trajectory(call)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, call in methods.items():
            seconds[name].append(trajectory(call))
    rows = []
    for name, values in seconds.items():
        speedup = statistics.median(a / b for a, b in zip(seconds["torch.compile"], values, strict=True))
        flops = plans[name].flop_ratio or 1.0 if name in plans else 1.0
        saved = (1 - 1 / speedup) / (1 - flops) if flops < 1 else None
        rows.append({"method": name, "seconds": values, "speedup": speedup, "flop_speedup": 1 / flops, "saved": saved})
        line = f"{name:28} median {statistics.median(values):.3f} s, x{speedup:.2f} over torch.compile"
        if saved is not None:
            line += f", FLOPs x{1 / flops:.2f} ({speedup * flops:.0%} of it), time saved / FLOPs saved {saved:.0%}"
        typer.echo(line)
    write_atomic(out, json.dumps({"batch": batch, **machine(), "rows": rows}, indent=1).encode())


@app.command("compile-time")
def compile_time(
    layers: int = 28, hidden: int = 384, rounds: int = 3, out: Path = RESULTS / "compile_time.json"
) -> None:
    """Everything a plan needs, cold and warm, against plain torch.compile of the same DiT."""
    with tempfile.TemporaryDirectory() as cache:
        _first_call("torch.compile", 1, hidden, cache)  # Inductor's precompiled headers are shared by all caches
    methods, starts = ("torch.compile", "soda"), ("cold", "warm")
    seconds: dict[str, list[float]] = {f"{method}, {start}": [] for method in methods for start in starts}
    for _ in range(rounds):
        for method in methods:
            with tempfile.TemporaryDirectory() as cache:
                for start in starts:
                    seconds[f"{method}, {start}"].append(_first_call(method, layers, hidden, cache))
    cold = seconds["torch.compile, cold"]
    for name, values in seconds.items():
        share = statistics.median(a / b for a, b in zip(values, cold, strict=True))
        typer.echo(f"{name:20} median {statistics.median(values):5.1f} s, {share:.2f} of torch.compile, cold")
    about = {"layers": layers, "hidden": hidden, **machine()}
    write_atomic(out, json.dumps({**about, "seconds": seconds}, indent=1).encode())


def _first_call(method: str, layers: int, hidden: int, cache: str) -> float:
    """Seconds that the first call takes longer than the second, in a process of its own."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    command = [sys.executable, __file__, "compile-once", method, str(layers), str(hidden)]
    printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(printed.splitlines()[-1])


@app.command("compile-once", hidden=True)
def compile_once(method: str, layers: int, hidden: int) -> None:
    """Prints the seconds of the first call, less those of a later one of the same kind."""
    model = DiTTransformer2DModel(
        num_attention_heads=hidden // 64, attention_head_dim=64, in_channels=4, num_layers=layers, sample_size=16,
        patch_size=2, num_embeds_ada_norm=10, norm_num_groups=1,
    ).eval()  # fmt: skip
    inputs = {"timestep": torch.tensor([5, 5]), "class_labels": torch.tensor([1, 2]), "return_dict": False}
    latents = torch.randn(2, 4, 16, 16)
    if method == "soda":
        # The variants of any DP plan with first-order forecasts: full with and without stores, reuse, forecast.
        rows = "CrCr1C"
        symbols = {"C": soda_compile.Action("compute"), "r": soda_compile.Action("reuse")}
        symbols["1"] = soda_compile.Action("forecast", 1)
        regions = [f"transformer_blocks.{layer}.{name}" for layer in range(layers) for name in ("attn1", "ff")]
        plan = soda_compile.Plan("", tuple(regions), (tuple(symbols[c] for c in rows),) * len(regions))
        call = torch.compile(model, backend="soda", options={"plan": plan}, fullgraph=True, dynamic=False)
    else:
        call = torch.compile(model, fullgraph=True, dynamic=False)
    with torch.no_grad():
        started = time.perf_counter()
        call(latents, **inputs)
        first = time.perf_counter() - started
        started = time.perf_counter()
        call(latents, **inputs)
        typer.echo(first - (time.perf_counter() - started))


if __name__ == "__main__":
    app()
