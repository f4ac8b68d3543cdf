"""Two families: a package in a process without diffusers and without a compiler gives what the JIT gives.

For one of them bit for bit what Inductor's code gives (test_packages.py compares every action so), for the other up to
rounding what its graphs give; for both up to rounding what hooks in eager mode give. test_sized_packages.py has others.
"""

import json
import subprocess
import sys
from pathlib import Path

import package_tools as toy
import pytest
import torch
from package_tools import Calls
from safetensors.torch import load_file, save_file
from torch import Tensor

pytest.importorskip("diffusers")

from eager_reference import EagerReference
from families import FAMILIES, structure_of

import soda_compile
from soda_compile.packages.loading import open_package

PACKAGED = ("dit", "wan")
BIT_FOR_BIT = ("wan",)

pytestmark = pytest.mark.thorough  # over a minute each; test_packages.py has a package of every action


def serve(package: Path, calls: Calls, folder: Path) -> list[Tensor]:
    """The outputs of a trajectory in a fresh process."""
    save_file(toy.tensors(calls), folder / "inputs.safetensors")
    fixed = {name: value for name, value in calls[0].items() if not isinstance(value, Tensor)}
    arguments = [
        str(package),
        str(folder / "inputs.safetensors"),
        str(folder / "outputs.safetensors"),
        json.dumps(fixed),
    ]
    done = subprocess.run(
        [sys.executable, "-c", toy.SERVE, *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "[]", "a serving process needs no compiler"
    results = load_file(folder / "outputs.safetensors")
    return [results[str(step)] for step in range(len(calls))]


@pytest.mark.parametrize("name", PACKAGED)
def test_a_fresh_process_gives_what_the_jit_gives(name: str, tmp_path: Path) -> None:
    torch.compiler.reset()
    model, calls, structure = FAMILIES[name].build(), FAMILIES[name].trajectory(3), structure_of(name)
    plan = toy.structure_plan(["CC1"] * len(structure.region_names), structure)
    package = soda_compile.export(model, calls[0], plan=plan, path=tmp_path / f"{name}.soda.pt2")
    exact = name in BIT_FOR_BIT
    options = {"plan": plan, "lowering": "inductor" if exact else "eager"}
    jit = torch.compile(model, backend="soda", options=options, fullgraph=True, dynamic=False)
    rounding = {"rtol": 1e-4, "atol": 1e-5}
    found = serve(package, calls, tmp_path)
    torch.testing.assert_close(found, toy.outputs(jit, calls), **({"rtol": 0, "atol": 0} if exact else rounding))
    by_hooks = EagerReference(model, FAMILIES[name].regions, plan).run(calls)
    torch.testing.assert_close(found, [outputs[0] for outputs in by_hooks], **rounding)
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    members = open_package(package).members
    code = sum(len(data) for member, data in members.items() if not member.endswith(".safetensors"))
    assert package.stat().st_size < weights + code + 100_000
