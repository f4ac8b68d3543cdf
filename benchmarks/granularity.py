"""What splitting steps at block boundaries costs, against one graph for each step: time and cold compile time.

    python benchmarks/granularity.py measure

One DiT, in one process for each way of compiling it; the rounds of the processes are interleaved.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

import soda_compile
from soda_compile.storage.files import write_atomic

app = typer.Typer(add_completion=False)
RESULTS = Path("benchmarks/results/granularity.json")
STEPS = "CrrC1r"
WAYS = ("torch.compile", "block", "step")


def compile_way(way: str, layers: int, hidden: int) -> Any:
    """The compiled model; soda runs a plan with stores, reuses and forecasts."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=hidden // 64, attention_head_dim=64, in_channels=4, num_layers=layers, sample_size=32,
        patch_size=2, num_embeds_ada_norm=10, norm_num_groups=1,
    ).eval()  # fmt: skip
    if way == "torch.compile":
        return torch.compile(model, fullgraph=True, dynamic=False)
    actions = {"C": soda_compile.Action("compute"), "r": soda_compile.Action("reuse")}
    actions["1"] = soda_compile.Action("forecast", 1)
    regions = [f"transformer_blocks.{layer}.{name}" for layer in range(layers) for name in ("attn1", "ff")]
    plan = soda_compile.Plan("", tuple(regions), (tuple(actions[step] for step in STEPS),) * len(regions))
    options = {"plan": plan, "granularity": way}
    return torch.compile(model, backend="soda", options=options, fullgraph=True, dynamic=False)


@app.command("worker", hidden=True)
def worker(way: str, layers: int, hidden: int) -> None:
    """Compiles, prints the seconds that took, and then runs a trajectory for each line on standard input."""
    compiled = compile_way(way, layers, hidden)
    inputs = {"timestep": torch.tensor([5]), "class_labels": torch.tensor([1]), "return_dict": False}
    latents = torch.randn(1, 4, 32, 32)

    def trajectory() -> list[float]:
        times = []
        with torch.no_grad(), soda_compile.trajectory(compiled):
            for _ in STEPS:
                started = time.perf_counter()
                compiled(latents, **inputs)
                times.append(time.perf_counter() - started)
        return times

    started = time.perf_counter()
    trajectory()
    first = time.perf_counter() - started
    print(json.dumps(first - sum(trajectory())), flush=True)
    for _ in sys.stdin:
        print(json.dumps(trajectory()), flush=True)


@app.command()
def measure(
    layers: int = 12,
    hidden: int = 384,
    rounds: int = 15,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = RESULTS,
) -> None:
    """Compiles one way after the other, each with empty caches, and times them in turn."""
    workers, compile_s = {}, {}
    with tempfile.TemporaryDirectory() as cache:
        for way in WAYS:
            command = [sys.executable, __file__, "worker", way, str(layers), str(hidden)]
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(Path(cache) / way)}
            workers[way] = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            compile_s[way] = _answer(workers[way])
        times: dict[str, list[list[float]]] = {way: [] for way in WAYS}
        for number in range(rounds):
            for way in WAYS[number % 3 :] + WAYS[: number % 3]:
                pipe = workers[way].stdin
                assert pipe is not None
                pipe.write("\n")
                pipe.flush()
                times[way].append(_answer(workers[way]))
        for process in workers.values():
            process.communicate()
    for way in WAYS:
        steps = [statistics.median(row[step] for row in times[way]) * 1e3 for step in range(len(STEPS))]
        shown = "  ".join(f"{kind} {value:.1f}" for kind, value in zip(STEPS, steps, strict=True))
        typer.echo(f"{way:14} compiled in {compile_s[way]:.1f} s; ms by step: {shown}")
    ratio = statistics.median(sum(a) / sum(b) for a, b in zip(times["step"], times["block"], strict=True))
    typer.echo(f"whole steps take {ratio:.3f} of the time of blocks (median of the ratios by round)")
    about = {"layers": layers, "hidden": hidden, "steps": STEPS, "torch": torch.__version__}
    about |= {"threads": torch.get_num_threads(), "machine": platform.machine()}
    result = {**about, "compile_s": compile_s, "seconds": times}
    write_atomic(out, json.dumps(result, indent=1).encode())


def _answer(process: "subprocess.Popen[str]") -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


if __name__ == "__main__":
    app()
