"""What generations at different steps gain from sharing calls, against one after the other and against no plan.

    python benchmarks/batching.py

Requests arrive one every few steps of those before, as at a server, and all are stepped in turn until each is done. One
DiT in one process; the ways are interleaved, and compilation is apart.
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor

import soda_compile
from soda_compile.plans.actions import COMPUTE, FORECAST1, REUSE
from soda_compile.storage.files import write_atomic

app = typer.Typer(add_completion=False)
RESULTS = Path("benchmarks/results/batching.json")
Stepper = Callable[[list[int], Tensor, Tensor, Tensor], Tensor]
"""Runs the denoiser once for each of the requests; latents, timesteps and labels by row."""


def build(layers: int, hidden: int, size: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=hidden // 64, attention_head_dim=64, in_channels=4, num_layers=layers, sample_size=size,
        patch_size=2, num_embeds_ada_norm=10, norm_num_groups=1,
    ).eval()  # fmt: skip


def plan_for(model: torch.nn.Module, latents: Tensor, steps: int, interval: int) -> soda_compile.Plan:
    """Every ``interval``-th step computes; the first after it reuses, later ones forecast."""
    arguments = {"timestep": torch.tensor([5]), "class_labels": torch.tensor([1]), "return_dict": False}
    structure = soda_compile.inspect(model, latents, **arguments)
    row = tuple(
        COMPUTE if step % interval == 0 else FORECAST1 if step > interval and step % interval > 1 else REUSE
        for step in range(steps)
    )
    return soda_compile.Plan(structure.fingerprint, structure.region_names, (row,) * len(structure.region_names))


def serve(step: Stepper, arrivals: list[int], steps: int, latents: Tensor) -> Tensor:
    """Run all requests to their end; return the samples."""
    at = dict.fromkeys(range(len(arrivals)), 0)
    samples = latents.clone()
    turn = 0
    while at:
        now = [number for number in at if arrivals[number] <= turn]
        if now:
            timesteps = torch.tensor([1000 - 1000 * at[number] // steps for number in now])
            noise = step(now, samples[now], timesteps, torch.tensor(now) % 10)
            samples[now] -= noise[:, :4] / steps
            for number in now:
                at[number] += 1
        at = {number: done for number, done in at.items() if done < steps}
        turn += 1
    return samples


def by_plan(model: torch.nn.Module, plan: soda_compile.Plan, sizes: tuple[int, ...]) -> Callable[[], Stepper]:
    batched = soda_compile.BatchedGenerations(model, plan, sizes=sizes)

    def begin() -> Stepper:
        generations: dict[int, soda_compile.Generation] = {}

        def step(now: list[int], latents: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
            for number in now:
                if number not in generations:
                    generations[number] = batched.new_generation()
            under_way = [generations[number] for number in now]
            result: Tensor = batched(under_way, latents, timestep=timesteps, class_labels=labels, return_dict=False)[0]
            return result

        return step

    return begin


def without_plan(model: torch.nn.Module, most: int) -> Callable[[], Stepper]:
    """Plain torch.compile, all requests in batches of at most ``most``: without a plan every step does the same."""
    compiled: Any = torch.compile(model, fullgraph=True, dynamic=False)

    def step(now: list[int], latents: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        outputs, start = [], 0
        while start < len(now):
            size = next(size for size in (8, 4, 2, 1) if size <= min(most, len(now) - start))
            part = slice(start, start + size)
            outputs.append(
                compiled(latents[part], timestep=timesteps[part], class_labels=labels[part], return_dict=False)[0]
            )
            start += size
        return torch.cat(outputs)

    return lambda: step


@app.command()
def measure(
    layers: int = 8,
    hidden: int = 384,
    size: int = 32,
    requests: int = 8,
    steps: int = 24,
    interval: int = 4,
    rounds: int = 7,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = RESULTS,
) -> None:
    """Serve the same requests in each way, and write the times."""
    model = build(layers, hidden, size)
    latents = torch.randn(requests, 4, size, size, generator=torch.Generator().manual_seed(1))
    plan = plan_for(model, latents[:1], steps, interval)
    ways = {
        "torch.compile, one at a time": without_plan(model, 1),
        "torch.compile, batched": without_plan(model, 8),
        "plan, one at a time": by_plan(model, plan, (1,)),
        "plan, batched": by_plan(model, plan, (1, 2, 4, 8)),
    }
    arrivals = {"at once": 0, "one each step": 1, "one every other step": 2, "one every 3rd step": 3}
    table: dict[str, Any] = {}
    with torch.no_grad():
        for name, apart in arrivals.items():
            due = [number * apart for number in range(requests)]
            samples = {way: serve(begin(), due, steps, latents) for way, begin in ways.items()}  # compiles
            largest = samples["plan, one at a time"].abs().max()
            difference = float((samples["plan, batched"] - samples["plan, one at a time"]).abs().max() / largest)
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, begin in ways.items():
                    started = time.perf_counter()
                    serve(begin(), due, steps, latents)
                    seconds[way].append(time.perf_counter() - started)
            base = seconds["torch.compile, one at a time"]
            speedups = {
                way: statistics.median(other / one for other, one in zip(base, each, strict=True))
                for way, each in seconds.items()
            }
            table[name] = {"speedup": speedups, "seconds": seconds, "largest relative difference": difference}
            print(name, {way: round(value, 2) for way, value in speedups.items()}, f"difference {difference:.1e}")
    figures = {
        "command": " ".join(["python", *sys.argv]), "torch": torch.__version__, "machine": platform.machine(),
        "threads": torch.get_num_threads(), "layers": layers, "hidden": hidden, "tokens": (size // 2) ** 2,
        "requests": requests, "steps": steps, "interval": interval, "rounds": rounds, "arrivals": table,
    }  # fmt: skip
    write_atomic(out, json.dumps(figures, indent=1).encode())


if __name__ == "__main__":
    app()
