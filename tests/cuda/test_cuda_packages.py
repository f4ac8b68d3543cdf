"""Ahead-of-time packages on a GPU: what the JIT gives, in a fresh process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import package_tools as toy
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._pytree import tree_map_only

pytest.importorskip("diffusers")

from families import FAMILIES, structure_of

import soda_compile


def calls_of(name: str) -> list[dict[str, Any]]:
    return [tree_map_only(Tensor, Tensor.cuda, call) for call in FAMILIES[name].trajectory(3)]


# A package of torch's own: where the toolchain does not make one that loads, ours cannot either.
PLAIN = """
import torch
model = torch.nn.Linear(4, 4).cuda()
exported = torch.export.export(model, (torch.ones(2, 4, device="cuda"),))
path = torch._inductor.aoti_compile_and_package(exported)
torch._inductor.aoti_load_package(path)
"""


@pytest.fixture(scope="module", autouse=True)
def packages_load() -> None:
    done = subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"AOTInductor's own package does not load here, exit code {done.returncode}: {done.stderr[-300:]}")


@pytest.mark.parametrize("name", ["dit", "flux"])
def test_a_fresh_process_gives_what_the_jit_gives(name: str, tmp_path: Path) -> None:
    model, calls, structure = FAMILIES[name].build().cuda(), calls_of(name), structure_of(name)
    plan = toy.structure_plan(["CC1"] * len(structure.region_names), structure)
    package = soda_compile.export(model, calls[0], plan=plan, path=tmp_path / "model.soda.pt2")
    torch._dynamo.reset()
    jit = torch.compile(model, backend="soda", options={"plan": plan}, fullgraph=True, dynamic=False)
    with torch.no_grad():
        wanted = [jit(**call)[0] for call in calls]
    save_file(toy.tensors(calls), tmp_path / "inputs.safetensors")
    fixed = {key: value for key, value in calls[0].items() if not isinstance(value, Tensor)}
    arguments = [str(package), str(tmp_path / "inputs.safetensors"), str(tmp_path / "outputs.safetensors")]
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", toy.SERVE, *arguments, json.dumps(fixed), "cuda"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "outputs.safetensors", device="cuda")
    for step, value in enumerate(wanted):
        torch.testing.assert_close(found[str(step)], value, rtol=1e-3, atol=1e-4)
