"""Times a loaded package on random inputs."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from soda_compile.packages.denoiser import PackagedDenoiser
from soda_compile.packages.sized_program import SizedProgram
from soda_compile.packages.sizes import Point
from soda_compile.packages.tensors import named_dtype
from soda_compile.plans.plan import Plan
from soda_compile.runtime.generation import trajectory


@dataclass(frozen=True)
class Timing:
    """Seconds of each step of each trajectory; the first trajectory warms up and is not in it."""

    seconds: tuple[tuple[float, ...], ...]

    @property
    def trajectory(self) -> float:
        """Return the median over trajectories, in seconds."""
        return statistics.median(map(sum, self.seconds))

    def steps(self, numbers: tuple[int, ...]) -> float:
        """Return the median over these steps of all trajectories, in seconds."""
        return statistics.median(one[number] for one in self.seconds for number in numbers)


def time_package(denoiser: PackagedDenoiser, program: SizedProgram, rounds: int, values: Point) -> Timing:
    """Run and time whole trajectories of one program of a package; ``values`` are its dynamic dimensions, if any."""
    inputs = [random_inputs(program, denoiser.plan, step, values) for step in range(denoiser.plan.steps)]
    return Timing(tuple(_trajectory(denoiser, program, inputs, values) for _ in range(rounds + 1))[1:])


def _trajectory(
    denoiser: PackagedDenoiser, program: SizedProgram, inputs: list[dict[str, torch.Tensor]], point: Point
) -> tuple[float, ...]:
    seconds = []
    with torch.no_grad(), trajectory(denoiser):
        for values in inputs:
            started = time.perf_counter()
            for _ in range(denoiser.plan.calls_per_step):
                program.run(values, point)
            if denoiser.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    return tuple(seconds)


def random_inputs(program: SizedProgram, plan: Plan, step: int, sizes: Point) -> dict[str, Any]:
    """Return tensor arguments by path: noise, zeros for integers, ones for masks, and the plan's timestep."""
    generator = torch.Generator().manual_seed(step)
    values: dict[str, Any] = {}
    for path, entry in program.call.arguments.items():
        values[path] = _fill(entry.shape_at(sizes), named_dtype(entry.dtype), generator).to(program.device)
        if path == plan.timestep_input and plan.timesteps is not None:
            values[path].fill_(plan.timesteps[step])
    return values


def _fill(shape: list[int], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.full(shape, int(dtype == torch.bool), dtype=dtype)
