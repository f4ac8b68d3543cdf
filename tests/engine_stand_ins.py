"""The interfaces of vLLM-Omni and of SGLang's diffusion runtime that the plug-ins use, around a small denoiser.

Both engines ask for a GPU when they are installed. What plug-ins hook is by the names, and is called in the order, that
it has there.
"""

import functools
import pkgutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from eager_reference import EagerReference
from small_denoiser import REGIONS, TIMESTEPS, TOKENS, WIDTH, Denoiser
from torch import Tensor, nn

import soda_compile
from soda_compile.plans.plan import Plan

GUIDANCE = 1.5


def install(patch: pytest.MonkeyPatch, name: str, **content: Any) -> ModuleType:
    """Put a module, and the packages that it lies in, where import finds it."""
    parts = name.split(".")
    for stop in range(1, len(parts)):
        package = ".".join(parts[:stop])
        if package not in sys.modules:
            patch.setitem(sys.modules, package, ModuleType(package))
    module = ModuleType(name)
    vars(module).update(content)
    patch.setitem(sys.modules, name, module)
    patch.setattr(sys.modules[".".join(parts[:-1])], parts[-1], module, raising=False)
    return module


def noise(seed: int = 0, samples: int = 1) -> Tensor:
    return torch.randn(samples, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


def draw(x: Tensor, denoise: Callable[[Tensor, float], Tensor]) -> Tensor:
    """A sampler."""
    with torch.no_grad():
        for timestep in TIMESTEPS:
            x = x - 0.1 * denoise(x, timestep)
    return x


def guided(model: Callable[..., Tensor], x: Tensor, timestep: float) -> Tensor:
    """A conditional call, and an unconditional one, which here is that of other tokens."""
    times = torch.full((len(x),), timestep)
    conditional, unconditional = model(x, times), model(-x, times)
    return unconditional + GUIDANCE * (conditional - unconditional)


def under_hooks(model: nn.Module, plan: Plan, branch_of: Callable[..., int]) -> Callable[..., Tensor]:
    """The model under a plan that forward hooks carry out; ``branch_of`` a call's inputs says whose values it takes."""
    references: dict[int, EagerReference] = {}
    made: Counter[int] = Counter()

    def call(*arguments: Any, **options: Any) -> Tensor:
        branch = branch_of(*arguments, **options)
        reference = references.setdefault(branch, EagerReference(model, REGIONS, plan))
        with reference.step(made[branch]):
            result: Tensor = model(*arguments, **options)
        made[branch] += 1
        return result

    return call


def counts_of(model: nn.Module) -> dict[str, Any]:
    (counted,) = soda_compile.stats(model).values()
    return counted


# vLLM-Omni


class Pipeline(nn.Module):
    """A pipeline of vLLM-Omni: a call of ``forward`` is a request."""

    def __init__(self, guidance: bool = False, name: str = "transformer") -> None:
        super().__init__()
        self.guidance = guidance
        setattr(self, name, Denoiser())
        self._dit_modules = [name] if name != "transformer" else None

    def forward(self, request: Tensor) -> Tensor:
        model = getattr(self, self._dit_modules[0] if self._dit_modules else "transformer")
        denoise = functools.partial(guided, model)
        return draw(request, denoise if self.guidance else lambda x, t: model(x, torch.full((len(x),), t)))


@pytest.fixture
def vllm_omni(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None, Any], Any]:
    """The selector of cache backends as the worker imported it, and as a plug-in may have changed it since."""

    def get_cache_backend(cache_backend: str | None, cache_config: Any) -> Any:
        if cache_backend is None:
            return None
        raise ValueError(f"Unsupported cache backend: {cache_backend}")

    install(monkeypatch, "vllm_omni.diffusion.cache.selector", get_cache_backend=get_cache_backend)
    name = "vllm_omni.diffusion.worker.diffusion_model_runner"
    runner = install(monkeypatch, name, get_cache_backend=get_cache_backend)
    return lambda *arguments: runner.get_cache_backend(*arguments)


class DiffusionCacheConfig:
    """What vLLM-Omni makes of a dict: fields of its own cache backends, and the rest apart."""

    def __init__(self, rel_l1_thresh: float | None = None, **extra: Any) -> None:
        self.rel_l1_thresh = rel_l1_thresh
        self._extra_params = extra


# SGLang

RUNTIME = "sglang.multimodal_gen.runtime"
HookType = Enum("HookType", {name.upper(): name for name in ("before", "after", "around", "replace")})


class Registry:
    """Hooks by the dotted name of what they are for."""

    def __init__(self) -> None:
        self.hooks: dict[str, list[tuple[HookType, Callable[..., Any]]]] = defaultdict(list)

    def plugin_hook(self, target: str, kind: HookType = HookType.AFTER) -> Callable[..., Any]:
        return lambda hook: self.hooks[target].append((kind, hook))

    def apply(self) -> None:
        for target, hooks in self.hooks.items():
            owner, _, name = target.rpartition(".")
            place = pkgutil.resolve_name(owner)
            for kind, hook in hooks:
                setattr(place, name, _hooked(getattr(place, name), kind, hook))


def _hooked(original: Callable[..., Any], kind: HookType, hook: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        if kind is HookType.AROUND:
            return hook(original, *arguments, **options)
        if kind is HookType.BEFORE:
            arguments, options = hook(*arguments, **options) or (arguments, options)
            return original(*arguments, **options)
        result = original(*arguments, **options)
        changed = hook(result, *arguments, **options)
        return result if changed is None else changed

    return wrapper


def resolve_torch_compile_kwargs(*names: str, **settings: Any) -> tuple[dict[str, Any], str]:
    return {"fullgraph": False, "dynamic": None, "backend": "eager"}, settings.get("default", "default")


def stage_class() -> type:
    """The class of a denoising stage, new each time, as hooks stay on it."""

    class DenoisingStage:
        def __init__(self, first: nn.Module, second: nn.Module | None = None, *, guidance: bool, **args: Any) -> None:
            self.transformer, self.transformer_2, self.guidance = first, second, guidance
            self.paired = args.get("paired", False)
            names = ("regional_compile", "enable_breakable_cuda_graph")
            settings = {"enable_torch_compile": True, **dict.fromkeys(names, False), **args}
            self.server_args = SimpleNamespace(**settings)
            for module in (first, second):
                self._maybe_torch_compile(module)

        def _cache_dit_requested(self) -> bool:
            return bool(getattr(self.server_args, "cache_dit", False))

        def _maybe_torch_compile(self, module: Any) -> None:
            if module is not None:
                utils = sys.modules[f"{RUNTIME}.utils.torch_compile"]
                kwargs, _ = utils.resolve_torch_compile_kwargs("SGLANG_TORCH_COMPILE_MODE", default="x", module=module)
                module.compile(**kwargs)

        def _dual_transformer_execution_mode(self) -> Any:
            mode = "paired_per_step" if self.paired else "boundary_experts"
            return None if self.transformer_2 is None else SimpleNamespace(value=mode)

        def _prepare_step_state(self, index: int, timestep: float) -> Any:
            late = self.transformer_2 is not None and not self.paired and index >= len(TIMESTEPS) // 2
            return SimpleNamespace(current_model=self.transformer_2 if late else self.transformer)

        def _run_denoising_loop(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                for index, timestep in enumerate(TIMESTEPS):
                    model = self._prepare_step_state(index, timestep).current_model
                    times = torch.full((len(x),), timestep)
                    x = x - 0.1 * (guided(model, x, timestep) if self.guidance else model(x, times))
                    if self.paired:
                        x = x - 0.1 * self.transformer_2(x, times)
            return x

    return DenoisingStage


@pytest.fixture
def sglang(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The modules that the plug-in imports and hooks; ``apply`` puts hooks where they belong, as the worker does."""
    registry = Registry()
    install(monkeypatch, f"{RUNTIME}.platforms.plugins", HookType=HookType, plugin_hook=registry.plugin_hook)
    install(
        monkeypatch,
        f"{RUNTIME}.utils.torch_compile",
        resolve_torch_compile_kwargs=resolve_torch_compile_kwargs,
    )
    install(monkeypatch, f"{RUNTIME}.pipelines_core.stages.denoising", DenoisingStage=stage_class())
    return registry
