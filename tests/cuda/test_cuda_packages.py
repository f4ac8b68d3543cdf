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
