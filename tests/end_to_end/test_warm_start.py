"""A second process: it finds the capture of the first and gives the same."""

import os
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = """
import sys
import torch
from plain_models import DitBlock, Listed, inputs
import soda_compile

traced = []
export = torch.export.export
torch.export.export = lambda *args, **kwargs: traced.append(1) or export(*args, **kwargs)

torch.manual_seed(0)
model = Listed(DitBlock).eval()
regions = tuple(f"blocks.{layer}.{name}" for layer in range(3) for name in ("attn", "mlp"))
computed, reused, forecast = (soda_compile.Action(*kind) for kind in (("compute",), ("reuse",), ("forecast", 1)))
plan = soda_compile.Plan("", regions, ((computed, reused, computed, forecast),) * len(regions))
denoiser = torch.compile(model, backend="soda", options={"plan": plan}, fullgraph=True, dynamic=False)
with torch.no_grad():
    results = [denoiser(**inputs(step, 4)) for step in range(4)]
torch.save(torch.stack(results), sys.argv[1])
print(len(traced))
"""


def start(folder: Path, name: str) -> int:
    """Runs the plan in a process of its own; how often it traced the denoiser."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": paths}
    environment["SODA_COMPILE_LOWERING"] = "eager"  # Inductor keeps its code by itself
    command = [sys.executable, "-c", SCRIPT, str(folder / name)]
    printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(printed.splitlines()[-1])


def test_a_second_start_does_not_trace_and_gives_the_same_bits(tmp_path: Path) -> None:
    assert start(tmp_path, "first") == 1
    assert start(tmp_path, "second") == 0
    assert torch.equal(torch.load(tmp_path / "first"), torch.load(tmp_path / "second"))
