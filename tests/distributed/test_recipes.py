"""The recipes of docs/distributed.md, as a reader would run them: under torchrun, as jobs, merged."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from distributed_checks import environment, torchrun
from paths import ROOT

from soda_compile import Plan, Sensitivity


def recipe(name: str, folder: Path) -> Path:
    """The example as a file."""
    text = (ROOT / "docs/distributed.md").read_text()
    found = re.search(rf"<!-- example: {name} -->\n```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    path = folder / f"{name}.py"
    path.write_text(found[1])
    return path


# Ray then stays on the loopback interface, which it does by itself on other systems than Linux, and reports nothing.
RAY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def run_alone(script: Path, *arguments: str, **variables: str) -> str:
    ran = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=script.parent,
        env=environment(script.parent, variables),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.thorough
def test_four_processes_measure_what_two_jobs_do(tmp_path: Path):
    ran = torchrun(recipe("torchrun", tmp_path), tmp_path, processes=4, seconds=400)
    assert ran.returncode == 0, ran.stderr
    shared = Sensitivity.load(tmp_path / "sensitivity.safetensors")
    assert shared.info.seeds == (0, 1, 2, 3)
    assert Plan.load(tmp_path / "plan.json").fingerprint == shared.info.fingerprint
    (tmp_path / "jobs").mkdir()
    for start, stop in ((0, 2), (2, 4)):
        run_alone(recipe("job", tmp_path / "jobs"), str(start), str(stop))
    assert run_alone(recipe("merge", tmp_path / "jobs")) == "(0, 1, 2, 3)\n"
    merged = Sensitivity.load(tmp_path / "jobs" / "sensitivity.safetensors")
    for key, table in shared.mean.items():
        np.testing.assert_allclose(table, merged.mean[key], rtol=1e-4, atol=1e-6, err_msg=key)


def test_workers_of_ray_measure_what_one_job_does(tmp_path: Path):
    pytest.importorskip("ray", reason="pip install soda-compile[serving]")
    (tmp_path / "alone").mkdir()
    run_alone(recipe("job", tmp_path / "alone"), "0", "4")
    assert run_alone(recipe("workers", tmp_path), **RAY).splitlines()[-1] == "(0, 1, 2, 3)"
    merged = Sensitivity.load(tmp_path / "sensitivity.safetensors")
    alone = Sensitivity.load(tmp_path / "alone" / "sensitivity-0.safetensors")
    for key, table in alone.mean.items():
        np.testing.assert_allclose(table, merged.mean[key], rtol=1e-4, atol=1e-6, err_msg=key)
