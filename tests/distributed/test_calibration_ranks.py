"""Calibration on several ranks, seen from one process: a rank that ends, no group, seeds that make no sense."""

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from checks_of_calibration import SEEDS, measured
from distributed_checks import by_hand, error_of

from soda_compile import OptionError

DYING = """
import os, sys, datetime
import torch.distributed as dist, soda_compile
from small_denoiser import Denoiser, calls
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=20))
model = Denoiser()
def generate(seed):
    if seed == 1:
        os._exit(9)
    for call in calls(seed):
        model(*call)
try:
    soda_compile.calibrate(model, generate, seeds=range(2), max_interval=1, process_group=dist.group.WORLD)
except soda_compile.DistributedError as error:
    print("refused:", error, flush=True)
    os._exit(3)
"""


def test_a_rank_that_dies_is_named(tmp_path: Path):
    """Without torchrun, which would end the others: here they find out themselves."""
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    survivor, dead = by_hand(script, tmp_path, processes=2, seconds=300)
    assert dead.returncode == 9
    assert survivor.returncode == 3, survivor.stderr
    assert "refused: calibration: a rank of [0, 1] has ended, or gave no answer" in survivor.stdout
    assert "1" in survivor.stdout.partition("init_process_group:")[2]


def test_without_a_process_group_it_is_said_how_to_get_one(monkeypatch: pytest.MonkeyPatch):
    assert "start the processes with torchrun" in error_of(OptionError, lambda: measured(process_group=object()))
    monkeypatch.setattr(dist, "is_available", lambda: False)
    assert "this build of torch has no torch.distributed" in error_of(
        OptionError, lambda: measured(process_group=object())
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generations": 3}, "give generations=3 or seeds, not both"),
        ({"seeds": [1, 1]}, r"seeds is (1, 1); it must be integers that are all different"),
        ({"seeds": ["a"]}, "it must be integers"),
        ({"seeds": []}, "generations is 0; it must be at least 1"),
    ],
)
def test_seeds_that_make_no_sense(options: dict[str, Any], message: str):
    assert message in error_of(OptionError, lambda: measured(**{"seeds": SEEDS, **options}))
