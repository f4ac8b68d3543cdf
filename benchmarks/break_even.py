"""Where pruning starts to pay: time of one DiT block computed, pruned and reused, by number of tokens.

    python benchmarks/break_even.py
    python benchmarks/break_even.py --tokens 64 --tokens 16384 --hidden 3072 --dtype bfloat16 --device cuda

The block is DiT's (adaLN-zero, self-attention, MLP of 4 * hidden; Peebles and Xie, arXiv 2212.09748) with random
weights, batch 1, compiled with Inductor through the backend as a plan's steps are. Rounds are interleaved: each runs
plain torch.compile and every action once; times are medians. "pays" names the highest kept share of tokens at which
the pruned block is at least 5% faster than the computed one.
"""

import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import soda_compile
from soda_compile.plans.actions import COMPUTE, REUSE, prune
from soda_compile.plans.plan import Plan
from soda_compile.plans.pruning import Pruning
from soda_compile.storage.files import write_atomic

RATES = (0.25, 0.5, 0.75)
ACTIONS = (COMPUTE, *map(prune, RATES), REUSE)
HEAD_WIDTH = 64
GAIN = 0.95
SIZES = {1152: (64, 256, 1024, 4096, 16384), 3072: (64, 256, 1024, 4096)}
"""Widths with the numbers of tokens that a CPU can bear; a GPU can bear all."""


class Block(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.heads = hidden // HEAD_WIDTH
        self.qkv = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(3))
        self.project = nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)
        self.modulation = nn.Linear(hidden, 6 * hidden)

    def attend(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in self.qkv)
        return self.project(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(functional.silu(c))[:, None].chunk(6, dim=-1)
        h = h + gate * self.attend(functional.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift)
        x = functional.layer_norm(h, h.shape[-1:]) * (1 + scale2) + shift2
        return h + gate2 * self.down(functional.gelu(self.up(x), approximate="tanh"))


class Denoiser(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(hidden)])

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        return self.blocks[0](h, c)


def seconds(call: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(
    tokens: int, hidden: int, rounds: int, warm_up: int, score: Any, dtype: torch.dtype, device: str
) -> dict[str, Any]:
    torch._dynamo.reset()
    model = Denoiser(hidden).to(device, dtype).eval()
    h, c = (
        torch.randn(1, tokens, hidden, device=device, dtype=dtype),
        torch.randn(1, hidden, device=device, dtype=dtype),
    )
    with torch.no_grad():
        regions = soda_compile.inspect(model, h, c).region_names
        plan = Plan("", regions, (ACTIONS,) * len(regions), pruning=Pruning(score, share="block"))
        planned = torch.compile(model, backend="soda", options={"plan": plan}, fullgraph=True, dynamic=False)
        plain = torch.compile(model, fullgraph=True, dynamic=False)
        times: dict[str, list[float]] = {"torch.compile": [], **{str(action): [] for action in ACTIONS}}
        for number in range(warm_up + rounds):
            row = {"torch.compile": seconds(lambda: plain(h, c), device)}
            with soda_compile.trajectory(model):
                row |= {str(action): seconds(lambda: planned(h, c), device) for action in ACTIONS}
            if number >= warm_up:
                for name, value in row.items():
                    times[name].append(value)
    gc.collect()
    return {"tokens": tokens, "hidden": hidden, "seconds": times}


def medians(row: dict[str, Any]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in row["seconds"].items()}


def pays(row: dict[str, Any]) -> str:
    """The smallest rate at which a pruned block is clearly faster than a computed one."""
    middle = medians(row)
    return next((f"{rate:.0%}" for rate in RATES if middle[str(prune(rate))] < GAIN * middle[str(COMPUTE)]), "-")


def show(rows: list[dict[str, Any]]) -> None:
    names = [str(action) for action in ACTIONS]
    table = Table("hidden", "tokens", "torch.compile ms", *(f"{name} (of compute)" for name in names), "pays from")
    for row in rows:
        middle = medians(row)
        cells = [f"{middle[name] / middle[names[0]]:.2f}" for name in names[1:]]
        times = [f"{middle['torch.compile'] * 1e3:.2f}", f"{middle[names[0]] * 1e3:.2f} ms"]
        table.add_row(str(row["hidden"]), str(row["tokens"]), *times, *cells, pays(row))
    Console(width=130).print(table)


def main(
    tokens: Annotated[list[int] | None, typer.Option(help="By default 64 to 16384, as far as a CPU can bear.")] = None,
    hidden: Annotated[list[int] | None, typer.Option()] = None,
    rounds: int = 5,
    warm_up: Annotated[int, typer.Option(min=1, help="Rounds before those that count; the first compiles.")] = 2,
    score: str = "drift",
    dtype: str = "float32",
    device: str = "cpu",
    out: Path = Path("benchmarks/results/break_even.json"),
) -> None:
    rows = []
    for width in hidden or SIZES:
        for count in tokens or SIZES.get(width, SIZES[3072]):
            rows.append(measure(count, width, rounds, warm_up, score, getattr(torch, dtype), device))
            show(rows[-1:])
    name = (
        torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    report = {"torch": torch.__version__, "device": name, "dtype": dtype, "score": score, "rows": rows}
    write_atomic(out, json.dumps(report, indent=1).encode())
    show(rows)


if __name__ == "__main__":
    typer.run(main)
