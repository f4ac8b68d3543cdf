"""A cache backend for vLLM-Omni: ``cache_backend="soda"``, with the options of backend "soda" as ``cache_config``.

vLLM-Omni finds it by the entry point in group ``vllm_omni.general_plugins``. Written for the interface of release 0.30:
one cache backend for each worker, enabled once, while each call of the pipeline is one generation.
"""

import functools
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn

from soda_compile.engines.goal import checked
from soda_compile.errors import OptionError
from soda_compile.runtime.generation import trajectory

NAME = "soda"
_DENOISERS = ("transformer", "transformer_2")  # where a pipeline does not name them in _dit_modules


class SodaCacheBackend:
    """Compiles the denoisers of a pipeline with backend "soda"; has what ``CacheBackend`` of vLLM-Omni asks for."""

    def __init__(self, config: Any = None) -> None:
        """Check the options.

        Args:
            config: A dict of options of the backend, or the ``DiffusionCacheConfig`` that vLLM-Omni makes of one;
                nothing, or nothing in it, asks for a speedup of 2.

        Raises:
            OptionError: For an unknown option, or a value that cannot be used.
            PlanError: For a plan file that is missing, damaged or of another version.
        """
        self.options = checked(_given(config))
        self.config = config
        self.enabled = False

    def enable(self, pipeline: Any) -> None:
        """Compile the denoisers, in place of what compiled them before, and open a generation around each call.

        Raises:
            OptionError: If the pipeline has no denoiser.
        """
        names = tuple(getattr(pipeline, "_dit_modules", None) or _DENOISERS)
        denoisers = [part for name in names if isinstance(part := getattr(pipeline, name, None), nn.Module)]
        if not denoisers:
            raise OptionError(
                f"{type(pipeline).__name__} has no module by the name of {' or '.join(names)} to accelerate; "
                "start without cache_backend='soda'"
            )
        for denoiser in denoisers:
            denoiser.compile(backend="soda", options=self.options)
        pipeline.forward = _as_a_generation(pipeline.forward, denoisers)
        self.enabled = True

    def refresh(self, pipeline: Any, num_inference_steps: int, verbose: bool = True) -> None:
        """Forget nothing: a generation begins and ends with each call of the pipeline."""

    def is_enabled(self) -> bool:
        """Return whether a pipeline is accelerated."""
        return self.enabled


def _given(config: Any) -> dict[str, Any]:
    """Return what was asked for; a DiffusionCacheConfig has a field for each option of other cache backends."""
    if config is None or isinstance(config, dict):
        return config or {}
    default = vars(type(config)())
    others = {name: value for name, value in vars(config).items() if name in default and value != default[name]}
    extra: dict[str, Any] = others.pop("_extra_params", {})
    return {**others, **extra}


def _as_a_generation(forward: Callable[..., Any], denoisers: list[nn.Module]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def generate(*arguments: Any, **options: Any) -> Any:
        with ExitStack() as stack:
            for denoiser in denoisers:
                stack.enter_context(trajectory(denoiser))
            return forward(*arguments, **options)

    return generate


def register() -> None:
    """Let vLLM-Omni find the backend by its name; may be called again."""
    from vllm_omni.diffusion.cache import selector  # type: ignore[import-not-found]

    original = selector.get_cache_backend
    if getattr(original, "knows_soda", False):
        return

    @functools.wraps(original)
    def get_cache_backend(cache_backend: str | None, cache_config: Any) -> Any:
        return SodaCacheBackend(cache_config) if cache_backend == NAME else original(cache_backend, cache_config)

    get_cache_backend.knows_soda = True  # type: ignore[attr-defined]
    for module in list(sys.modules.values()):  # also those that imported the function before
        if getattr(module, "__name__", "").startswith("vllm_omni.") and (
            vars(module).get("get_cache_backend") is original
        ):
            module.get_cache_backend = get_cache_backend  # type: ignore[attr-defined]
