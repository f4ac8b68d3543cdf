"""What the backend that measures itself costs while it learns, and gives afterwards; in one process and the next.

``python -m benchmarks.one_line`` runs each process beside torch.compile, generation by generation in turns, and writes
``benchmarks/results/one_line.json`` and ``.md``.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import diffusers
import torch
import typer

import soda_compile
from soda_compile.acceleration.beside import THREAD
from soda_compile.digits.pipeline import load
from soda_compile.storage.files import write_atomic

RESULTS = Path(__file__).parent / "results"
SPEEDUP, OBSERVED, STEPS, AFTER = 2.0, 8, 12, 6
Generate = Callable[[int], torch.Tensor]


def own_loop(folder: Path) -> tuple[Generate, Generate, Callable[[], Any]]:
    """A DiT of random weights under a loop that knows nothing of soda."""
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=8, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=4, sample_size=32,
        patch_size=2, num_embeds_ada_norm=10,
    ).eval()  # fmt: skip
    options = {"speedup": SPEEDUP, "generations": OBSERVED, "cache": str(folder)}

    def with_(denoiser: Callable[..., Any]) -> Generate:
        @torch.no_grad()
        def generate(seed: int) -> torch.Tensor:
            sample = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(seed))
            labels = torch.tensor([1, 2])
            for timestep in torch.linspace(990, 0, STEPS):
                noise = denoiser(sample, timestep=timestep.expand(2), class_labels=labels).sample[:, :4]
                sample = sample - noise / STEPS
            return sample

        return generate

    ours = torch.compile(model, backend="soda", options=options)
    return with_(ours), with_(torch.compile(model)), lambda: soda_compile.stats(model)["model"]["calls"]


def pipeline(folder: Path) -> tuple[Generate, Generate, Callable[[], Any]]:
    """The digits, trained, as a pipeline of diffusers."""
    ours, plain = load(), load()
    for each in (ours, plain):
        each.set_progress_bar_config(disable=True)
    plain.transformer.compile()
    soda_compile.accelerate(ours, speedup=SPEEDUP, when="lazily", calibrate_with=OBSERVED, cache=folder)

    def with_(pipe: Any) -> Generate:
        def generate(seed: int) -> torch.Tensor:
            generator = torch.Generator().manual_seed(seed)
            images: torch.Tensor = pipe(
                class_labels=list(range(10)) * 2, num_inference_steps=STEPS, generator=generator, output_type="pt"
            ).images
            return images

        return generate

    return with_(ours), with_(plain), lambda: soda_compile.stats(ours)["transformer"]["calls"]


SUBJECTS = {"own loop": own_loop, "pipeline": pipeline}


def run(subject: str, folder: Path) -> list[dict[str, Any]]:
    """Run generations until some follow the plan, beside those of torch.compile with the same noise."""
    torch.set_num_threads(1)
    ours, plain, planned = SUBJECTS[subject](folder)
    plain(0)  # compiled
    rows: list[dict[str, Any]] = []
    while sum(row["by_plan"] for row in rows) < AFTER and len(rows) < 60:
        seed, before = len(rows), planned()
        started = time.perf_counter()
        sample = ours(seed)
        middle = time.perf_counter()
        compiling = any(thread.name == THREAD for thread in threading.enumerate())
        wanted = plain(seed)
        ended = time.perf_counter()
        rows.append(
            {
                "seconds": middle - started,
                "torch_compile": ended - middle,
                "by_plan": planned() > before,
                "compiling": compiling,
                "error": float((sample - wanted).norm() / wanted.norm()),
            }
        )
        print(subject, rows[-1], flush=True)
    return rows


def phases(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Ratios of time by what generations did; those that compiled in their first call are left out."""
    kinds: dict[str, list[dict[str, Any]]] = {"observed": [], "while a thread compiles": [], "by plan": []}
    for row in rows:
        if row["by_plan"]:
            kinds["by plan"].append(row)
        else:
            kinds["while a thread compiles" if row["compiling"] else "observed"].append(row)
    found = {}
    for kind, each in kinds.items():
        used = each[2:] if kind == "observed" else each[1:] if kind == "by plan" else each
        if used:
            ratios = [row["seconds"] / row["torch_compile"] for row in used]
            found[kind] = {"generations": len(each), "ratio": statistics.median(ratios),
                           "error": max(row["error"] for row in used)}  # fmt: skip
    return found


def table(results: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = [
        "| what | process | generations | did | time / torch.compile | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    for subject, processes in results["subjects"].items():
        for number, rows in enumerate(processes, 1):
            lines += [
                f"| {subject} | {number} | {each['generations']} | {kind} | {each['ratio']:.2f} | {each['error']:.1e} |"
                for kind, each in phases(rows).items()
            ]
    lines += ["", f"`{results['command']}`, torch {results['torch']}, one thread; medians, of generations in turns."]
    return "\n".join(lines) + "\n"


def main(subject: Annotated[str | None, typer.Option(hidden=True)] = None, folder: Path = Path()) -> None:
    """Measure; ``subject`` and ``folder`` are what this program tells the processes that it starts."""
    if subject is not None:
        (folder / "rows.json").write_text(json.dumps(run(subject, folder)))
        return
    subjects: dict[str, list[Any]] = {}
    for name in SUBJECTS:
        with tempfile.TemporaryDirectory() as made:
            for _ in range(2):
                command = [sys.executable, "-m", "benchmarks.one_line", "--subject", name, "--folder", made]
                subprocess.run(command, check=True)
                subjects.setdefault(name, []).append(json.loads((Path(made) / "rows.json").read_text()))
    results = {"command": "python -m benchmarks.one_line", "torch": torch.__version__, "subjects": subjects}
    write_atomic(RESULTS / "one_line.json", json.dumps(results, indent=1).encode())
    write_atomic(RESULTS / "one_line.md", table(results).encode())


if __name__ == "__main__":
    typer.run(main)
