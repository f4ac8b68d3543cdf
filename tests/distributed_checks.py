"""Runs checks in several processes: one start of them for all.

Modules of ``tests/distributed`` have functions ``check_...`` that every rank runs, in order. ``launch`` starts this
file under torchrun, on loopback alone, and gives what became of each check on each rank.
"""

import importlib
import json
import os
import socket
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from paths import ROOT
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from soda_compile import Sensitivity

FOLDER = "SODA_TEST_FOLDER"
TIMEOUT = timedelta(seconds=120)  # of process groups: longer than a slow machine compiles a tiny model


def names_of(module: ModuleType) -> list[str]:
    return [f"{module.__name__}:{name}" for name in vars(module) if name.startswith("check_")]


def run_checks(names: list[str]) -> None:
    """Runs checks, named as ``names_of`` does, and writes what became of each; none after one that fails."""
    dist.init_process_group("gloo", timeout=TIMEOUT)
    found: dict[str, str] = {}
    for name in names:
        module, check = name.split(":")
        torch._dynamo.reset()  # plans are compared where graphs are compiled, which equal models share
        try:
            getattr(importlib.import_module(module), check)()
            found[name] = "ok"
        except BaseException:
            found[name] = traceback.format_exc()
        path = Path(os.environ[FOLDER], f"{dist.get_rank()}.json")
        path.write_text(json.dumps(found))
        if found[name] != "ok":
            os._exit(1)  # the other ranks are waiting for this one
    dist.barrier()
    dist.destroy_process_group()


def torchrun(
    script: str | Path, folder: Path, processes: int, seconds: int, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script in several processes on this machine, in a folder."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", str(processes), str(script), *arguments]
    own = environment(folder, variables)
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=seconds, check=False)


def by_hand(
    script: str | Path, folder: Path, processes: int, seconds: int, **variables: str
) -> list[subprocess.CompletedProcess[str]]:
    """Runs a script in several processes that nobody watches: torchrun would end all where one ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    started = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env=environment(folder, {**rendezvous, "RANK": str(rank), **variables}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        ended = [(each, *each.communicate(timeout=seconds)) for each in started]
    finally:
        for each in started:
            each.kill()
    return [subprocess.CompletedProcess(each.args, each.returncode, *texts) for each, *texts in ended]


def environment(folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/distributed")))
    own = {FOLDER: str(folder), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return {**os.environ, **own, "SODA_COMPILE_LOWERING": "eager", **more}


def launch(
    request: pytest.FixtureRequest, folder: Path, processes: int = 2, seconds: int = 300, **variables: str
) -> Callable[[str], list[str]]:
    """Runs the checks that pytest runs, and returns what gives the outcomes of one of them by rank."""
    names = [item.callspec.params["name"] for item in request.session.items if _is_check(item, request.path)]
    ran = torchrun(__file__, folder, processes, seconds, *names, **variables)

    def outcomes(name: str) -> list[str]:
        files = [folder / f"{rank}.json" for rank in range(processes)]
        found = [json.loads(file.read_text()) if file.exists() else {} for file in files]
        return [each.get(name) or f"not run: {ran.stdout[-2000:]}{ran.stderr[-3000:]}" for each in found]

    return outcomes


def _is_check(item: Any, path: Path) -> bool:
    return item.path == path and hasattr(item, "callspec") and "name" in item.callspec.params


def everyones(value: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def assert_close(one: Sensitivity, other: Sensitivity) -> None:
    assert one.info.seeds == other.info.seeds
    assert (one.info.samples, one.info.generations) == (other.info.samples, other.info.generations)
    for tables, others in ((one.mean, other.mean), (one.variance, other.variance)):
        for key in tables:
            np.testing.assert_allclose(tables[key], others[key], rtol=1e-4, atol=1e-6, err_msg=key)


def error_of(kind: type[Exception], run: Callable[[], Any]) -> str:
    with pytest.raises(kind) as raised:
        run()
    return str(raised.value)


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def sent_in(run: Callable[[], object]) -> Counter[str]:
    """The collectives that run in a call, by name; what waits for them is left out."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        run()
    names = (event.name for event in recorded.events())
    functional = [name.partition("::")[2] for name in names if name.startswith("_c10d_functional::")]
    return Counter(name for name in functional if name not in ("wait_tensor", "_wrap_tensor_autograd"))


if __name__ == "__main__":
    run_checks(sys.argv[1:])
