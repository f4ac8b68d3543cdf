"""Times a loaded package on random inputs."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from soda_compile.artifacts.denoiser import PackagedDenoiser, Runner
from soda_compile.artifacts.manifest import TensorEntry
from soda_compile.artifacts.tensors import named_dtype
from soda_compile.clock import trajectory
from soda_compile.plans import Plan


@dataclass(frozen=True)
class Timing:
    """Seconds of each step of each trajectory; the first trajectory warms up and is not in it."""

    seconds: tuple[tuple[float, ...], ...]

    @property
    def trajectory(self) -> float:
        """Median over trajectories, in seconds."""
        return statistics.median(map(sum, self.seconds))

    def steps(self, numbers: tuple[int, ...]) -> float:
        """Median over these steps of all trajectories, in seconds."""
        return statistics.median(one[number] for one in self.seconds for number in numbers)


def time_package(denoiser: PackagedDenoiser, rounds: int, program: int = 0) -> Timing:
    """Runs whole trajectories.

    Args:
        denoiser: The package.
        rounds: Trajectories to time.
        program: Which set of shapes to run.
    """
    runner = denoiser.runners[program]
    inputs = [random_inputs(runner, denoiser.plan, step, denoiser.device) for step in range(denoiser.plan.steps)]
    return Timing(tuple(_trajectory(denoiser, runner, inputs) for _ in range(rounds + 1))[1:])


def _trajectory(denoiser: PackagedDenoiser, runner: Runner, inputs: list[dict[str, torch.Tensor]]) -> tuple[float, ...]:
    seconds = []
    with torch.no_grad(), trajectory(denoiser):
        for values in inputs:
            started = time.perf_counter()
            for _ in range(denoiser.plan.calls_per_step):
                runner.run(values, denoiser.device)
            if denoiser.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    return tuple(seconds)


def random_inputs(runner: Runner, plan: Plan, step: int, device: torch.device) -> dict[str, Any]:
    """Tensor arguments of one call by path: noise, zeros for integers, ones for masks, and the plan's timestep."""
    generator = torch.Generator().manual_seed(step)
    values: dict[str, Any] = {}
    for path, entry in runner.call.arguments.items():
        values[path] = _fill(entry, generator).to(device)
        if path == plan.timestep_input and plan.timesteps is not None:
            values[path].fill_(plan.timesteps[step])
    return values


def _fill(entry: TensorEntry, generator: torch.Generator) -> torch.Tensor:
    dtype = named_dtype(entry.dtype)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(entry.shape, generator=generator).to(dtype)
    return torch.full(entry.shape, int(dtype == torch.bool), dtype=dtype)
