"""Threads and tasks at once on one model, as benchmarks/stress.py has them, for a few generations."""

from collections.abc import Iterator

import pytest
import torch
from tracing import eager_graphs

from benchmarks import stress


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    with eager_graphs(), torch._dynamo.config.patch(recompile_limit=64):
        yield


@pytest.mark.thorough  # unit/runtime/test_generations.py has each kind of interleaving by itself
def test_generations_at_once_give_what_they_give_alone() -> None:
    denoiser = stress.Denoiser("eager")
    expected = stress.alone(denoiser, 40)
    outcome = stress.together(denoiser, 40, threads=8, tasks=16)
    report = stress.judge(outcome, expected, denoiser)
    assert (report["differ"], report["missing"], report["errors"]) == (0, 0, [])
    assert report["equal"] == len(expected) < 40
    assert (report["slot_bytes_left"], report["misses"]) == (0, {})
