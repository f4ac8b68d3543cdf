"""The one command for a GPU, as far as it goes without one."""

import subprocess
import sys
import time

import psutil
import pytest
import torch
from paths import ROOT

from benchmarks import gpu_checklist as checklist


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_begins() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_checklist"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "no GPU to check" in ran.stderr


def _ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def test_a_command_ends_with_all_that_it_started_when_the_time_is_over() -> None:
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    status, output = checklist.run([sys.executable, "-c", parent], 8)
    assert status is None
    assert any(_ended(int(output)) or time.sleep(0.1) for _ in range(300))
    assert checklist.run([sys.executable, "-c", parent], 0) == (None, "")
    assert checklist.run([sys.executable, "-c", "print(1); exit(3)"], 60) == (3, "1\n")


def test_tests_are_counted_as_far_as_they_came() -> None:
    output = (
        "[gw0] [ 10%] PASSED tests/cuda/test_a.py::test_b[dit]\n"
        "[gw1] [ 20%] FAILED tests/cuda/test_a.py::test_c\n[gw1] [ 30%] PASSED tests/cuda/test_a.py::test_d\n"
        "FAILED tests/cuda/test_a.py::test_c - AssertionError\n"
    )
    assert checklist.outcome_of(None, output.splitlines()[0]) == "1 passed; the time was over"
    assert checklist.outcome_of(0, output[:52]) == "1 passed"
    assert "pytest ended with 4: usage" in checklist.outcome_of(4, "usage")
    assert checklist.outcome_of(1, output) == "1 failed, 2 passed"


def test_the_page_names_each_part() -> None:
    parts = [checklist.Part("tests/cuda", "3 passed", 100.4, True), checklist.Part("suite, dit", "a\nb", 20.0, False)]
    page = checklist.text("H100", parts, "python -m benchmarks.gpu_checklist")
    assert "| tests/cuda | 3 passed | 100 |" in page
    assert "| suite, dit | a b | 20 |" in page
