"""Runs a setting on seeds: its samples, cost, memory and time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.leaderboard.flops import counted
from benchmarks.leaderboard.installed import Installed
from benchmarks.leaderboard.subject import Subject


@dataclass(frozen=True, eq=False)
class Trial:
    """What a generation gave.

    Attributes:
        latents: [n, ...].
        cost: Share of the original's FLOPs; FLOPs where none are given to compare with.
        held_bytes: Kept from step to step, for each sample.
    """

    latents: Tensor
    cost: float
    held_bytes: float


def run(subject: Subject, installed: Installed, seeds: Sequence[int], original_flops: float = 1.0) -> Trial:
    """Run seeds in batches, counting FLOPs.

    Args:
        subject: Whose.
        installed: The method.
        seeds: One sample each.
        original_flops: Of one sample of the original.
    """
    latents, costs, held = [], [], 0
    for start in range(0, len(seeds), subject.batch):
        chosen = seeds[start : start + subject.batch]
        installed.reset()
        if installed.cost is not None:
            latents.append(_generate(subject, installed, chosen))
            costs.append(installed.cost())
        else:
            with counted() as counter:
                latents.append(_generate(subject, installed, chosen))
            costs.append(counter.total / len(chosen) / original_flops)
        held = max(held, installed.held_bytes() // len(chosen))
    weights = [len(each) for each in latents]
    cost = sum(cost * weight for cost, weight in zip(costs, weights, strict=True)) / len(seeds)
    return Trial(torch.cat(latents), cost, held)


def seconds(subject: Subject, installed: Installed, seeds: Sequence[int], rounds: int = 3) -> float:
    """The fastest of a few generations, seconds for all seeds in one batch."""
    found = []
    for _ in range(rounds):
        installed.reset()
        started = clock(subject)
        _generate(subject, installed, seeds)
        found.append(clock(subject) - started)
    return min(found)


def clock(subject: Subject) -> float:
    """Seconds: of the processor on a CPU, where other processes may run beside; of the clock on a GPU."""
    if subject.device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def original(subject: Subject) -> Installed:
    return Installed(subject.pipe, subject.steps)


def relative(latents: Tensor, wanted: Tensor) -> Tensor:
    """Relative L2 of each sample, float64 [n], on the host."""
    off = (latents.double() - wanted.double()).flatten(1).norm(dim=1)
    errors: Tensor = (off / wanted.double().flatten(1).norm(dim=1)).cpu()
    return errors


def _generate(subject: Subject, installed: Installed, seeds: Sequence[int]) -> Any:
    with torch.no_grad():
        return subject.run(installed.pipe, seeds, installed.steps)
