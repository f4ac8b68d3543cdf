"""A plug-in for SGLang's diffusion runtime: with ``--enable-torch-compile`` it compiles denoisers with backend "soda".

SGLang finds it by the entry point in group ``sglang.multimodal_gen.plugins``. It does nothing unless the environment
variable ``SODA_COMPILE_OPTIONS`` holds the options of the backend, as a JSON object such as ``{"speedup": 2.0}``.
Written for the interface of release 0.5.23.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from soda_compile.engines.goal import read
from soda_compile.errors import OptionError
from soda_compile.runtime.generation import Generation, trajectory

VARIABLE = "SODA_COMPILE_OPTIONS"
_RUNTIME = "sglang.multimodal_gen.runtime"
_STAGE = f"{_RUNTIME}.pipelines_core.stages.denoising.DenoisingStage"
_MODE_OF_DENOISERS = "SGLANG_TORCH_COMPILE_MODE"  # by this name the stage asks how to compile; decoders ask by others


@dataclass(eq=False)
class _Sampling:
    """One run of the denoising loop.

    Attributes:
        generations: That of each denoiser; two that share the schedule each count their own steps.
        begun: Those whose first step has begun.
    """

    generations: dict[nn.Module, Generation] = field(default_factory=dict)
    begun: set[nn.Module] = field(default_factory=set)


_sampling: ContextVar[_Sampling | None] = ContextVar("soda_compile_sglang", default=None)


def register() -> None:
    """Put hooks on the denoising stage.

    Raises:
        OptionError: If the variable does not hold options of the backend.
        PlanError: For a plan file that is missing, damaged or of another version.
    """
    if not os.environ.get(VARIABLE):
        return
    options = read(os.environ[VARIABLE], VARIABLE)
    from sglang.multimodal_gen.runtime.platforms.plugins import (  # type: ignore[import-not-found]
        HookType,
        plugin_hook,
    )

    plugin_hook(f"{_RUNTIME}.utils.torch_compile.resolve_torch_compile_kwargs", HookType.AROUND)(_asking(options))
    plugin_hook(f"{_STAGE}._maybe_torch_compile", HookType.BEFORE)(_require_whole_denoisers)
    plugin_hook(f"{_STAGE}._run_denoising_loop", HookType.AROUND)(_in_a_generation)
    plugin_hook(f"{_STAGE}._prepare_step_state", HookType.AFTER)(_begin_step)


def _asking(options: dict[str, Any]) -> Callable[..., Any]:
    """Return what answers with these options how a denoiser is compiled."""

    def resolve(original: Callable[..., Any], *names: str, **settings: Any) -> Any:
        if names[:1] != (_MODE_OF_DENOISERS,):
            return original(*names, **settings)
        return {"backend": "soda", "options": dict(options), "fullgraph": False, "dynamic": None}, "soda"

    return resolve


def _require_whole_denoisers(stage: Any, module: object) -> None:
    settings = stage.server_args
    wrong = None
    if not settings.enable_torch_compile:
        wrong = "--enable-torch-compile is missing, so nothing is compiled: give it"
    elif settings.regional_compile:
        wrong = "--regional-compile gives the backend one block at a time, where it cannot tell steps: leave it out"
    elif settings.enable_breakable_cuda_graph:
        wrong = "breakable CUDA graphs, which are asked for, run without torch.compile: leave them out"
    elif stage._cache_dit_requested():
        wrong = "Cache-DiT, which is asked for, keeps values by itself: switch it off"
    if wrong is not None:
        raise OptionError(f"{VARIABLE} is set, but {wrong}, or unset the variable")


def _in_a_generation(original: Callable[..., Any], stage: Any, *arguments: Any, **options: Any) -> Any:
    sampling = _Sampling()
    token = _sampling.set(sampling)
    with ExitStack() as stack:
        stack.callback(_sampling.reset, token)
        for denoiser in (stage.transformer, stage.transformer_2):
            if isinstance(denoiser, nn.Module):
                sampling.generations[denoiser] = stack.enter_context(trajectory(denoiser, manual=True))
        return original(stage, *arguments, **options)


def _begin_step(state: Any, stage: Any, *arguments: Any, **options: Any) -> None:
    """End the step before, where there was one, of the denoisers that are called in this one."""
    if (sampling := _sampling.get()) is None:
        return
    mode = stage._dual_transformer_execution_mode()
    together = mode is not None and mode.value == "paired_per_step"
    for denoiser in list(sampling.generations) if together else [state.current_model]:
        if denoiser in sampling.begun:
            sampling.generations[denoiser].advance()
        sampling.begun.add(denoiser)
