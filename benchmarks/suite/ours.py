"""soda_compile as a method of the suite."""

import functools
from typing import Any

import torch
from torch import nn

import soda_compile
from benchmarks.suite.plans import plan_for
from benchmarks.suite.runner import Runner
from soda_compile.backend.by_size import BySize
from soda_compile.backend.entry import soda


def planned(
    model: nn.Module,
    inputs: dict[str, Any],
    mask: tuple[bool, ...],
    kind: str,
    mode: str | None,
    ahead: bool,
    dynamic: bool = False,
) -> Runner:
    """The denoiser under a plan that follows the mask.

    ``ahead`` computes conditioning for all steps at once; ``dynamic`` compiles for any sizes.
    """
    with torch._inductor.config.patch(force_disable_caches=True):  # looking at the model must not begin compiling it
        plan = plan_for(soda_compile.inspect(model, **inputs), mask, kind)
    torch._dynamo.reset()
    built: list[Any] = []

    def backend(module: torch.fx.GraphModule, example: list[Any]) -> Any:
        options = {"plan": plan, "conditioning": "trajectory" if ahead else "step"}
        built.append(soda(module, example, options=options, mode=mode))
        return built[-1]

    def denoiser() -> Any:
        if len(built) != 1:
            raise RuntimeError(f"the backend was called {len(built)} times")
        made = built[0]
        return next(iter(made.compiled.values())) if isinstance(made, BySize) else made

    def flops() -> tuple[int, ...]:
        stage = denoiser().conditioning
        more = stage.one_step.flops[0] if stage else 0
        return tuple(one + more for one in denoiser().program.flops)

    def held_bytes() -> int:
        stage = denoiser().conditioning
        return denoiser().program.slot_memory_bytes + (stage.memory_bytes if stage else 0)

    return Runner(
        model,
        compile=functools.partial(torch.compile, backend=backend, fullgraph=True, dynamic=dynamic),
        trajectory=functools.partial(soda_compile.trajectory, model, timesteps=range(len(mask))),  # always the same
        flops=flops,
        held_bytes=held_bytes,
    )
