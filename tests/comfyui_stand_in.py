"""The interface of ComfyUI that the node uses, with a small denoiser: ComfyUI itself is in no package.

Wrappers, conditions that fit one batch and those that do not, and samplers that ask the guider several times for a
sigma are as there; what a call passes, ``transformer_options`` among it, reaches the denoiser as there.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import small_denoiser
import torch
from engine_stand_ins import install
from torch import Tensor, nn

PLACES = {name: name.lower() for name in ("SAMPLER_SAMPLE", "PREDICT_NOISE", "APPLY_MODEL")}
SIGMAS = (0.9, 0.75, 0.6, 0.45, 0.3, 0.15)


class Denoiser(small_denoiser.Denoiser):
    """Blocks that a text of any length gates."""

    def forward(  # type: ignore[override]
        self, x: Tensor, timestep: Tensor, context: Tensor, transformer_options: dict[str, Any]
    ) -> Tensor:
        return self.gated(x, 1 + torch.cos(timestep)[:, None, None] + context.mean((1, 2), keepdim=True))


@dataclass
class Executor:
    """A function of an object and what is wrapped around it, called from the outside in."""

    function: Callable[..., Any]
    class_obj: Any
    wrappers: list[Callable[..., Any]]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if not self.wrappers:
            return self.function(*arguments, **options)
        return self.wrappers[0](Executor(self.function, self.class_obj, self.wrappers[1:]), *arguments, **options)


@dataclass
class ModelPatcher:
    """A model, which clones share, and the wrappers of this clone."""

    model: Any
    wrappers: dict[str, dict[str, list[Callable[..., Any]]]] = field(default_factory=lambda: defaultdict(dict))

    def clone(self) -> "ModelPatcher":
        copied = ModelPatcher(self.model)
        for place, keys in self.wrappers.items():
            copied.wrappers[place] = {key: list(each) for key, each in keys.items()}
        return copied

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)

    def add_wrapper_with_key(self, place: str, key: str, wrapper: Callable[..., Any]) -> None:
        self.wrappers[place].setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, place: str, key: str) -> None:
        self.wrappers[place].pop(key, None)

    def wrapped(self, place: str, function: Callable[..., Any], owner: Any) -> Executor:
        return Executor(function, owner, [each for key in self.wrappers[place].values() for each in key])


def set_torch_compile_wrapper(model: ModelPatcher, backend: str, options: dict[str, Any] | None = None) -> None:
    """Put the compiled denoiser in the place of the other one during each call of the model."""
    compiled = torch.compile(model.get_model_object("diffusion_model"), backend=backend, options=options)

    def compiled_in_its_place(executor: Executor, *arguments: Any) -> Any:
        original, executor.class_obj.diffusion_model = executor.class_obj.diffusion_model, compiled
        try:
            return executor(*arguments)
        finally:
            executor.class_obj.diffusion_model = original

    model.remove_wrappers_with_key(PLACES["APPLY_MODEL"], "torch.compile")
    model.add_wrapper_with_key(PLACES["APPLY_MODEL"], "torch.compile", compiled_in_its_place)


@dataclass
class Guider:
    """Guidance over positive and negative conditions, which share a call where they have one shape."""

    patcher: ModelPatcher
    conditions: tuple[Tensor, ...]
    inner_model: Any = field(init=False)

    def __post_init__(self) -> None:
        self.inner_model = self.patcher.model

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        predicted: Tensor = self.patcher.wrapped(PLACES["PREDICT_NOISE"], self._predict, self)(x, sigma)
        return predicted

    def _predict(self, x: Tensor, sigma: Tensor) -> Tensor:
        groups = defaultdict(list)
        for number, condition in enumerate(self.conditions):
            groups[condition.shape].append(number)
        found: dict[int, Tensor] = {}
        for numbers in groups.values():
            repeated, sigmas = torch.cat([x] * len(numbers)), torch.cat([sigma] * len(numbers))
            context = torch.cat([self.conditions[number] for number in numbers])
            options = {"cond_or_uncond": numbers, "sigmas": sigma}
            call = self.patcher.wrapped(PLACES["APPLY_MODEL"], self._apply, self.inner_model)
            found |= zip(numbers, call(repeated, sigmas, None, context, None, options).chunk(len(numbers)), strict=True)
        return found[0] if len(found) == 1 else found[1] + 3 * (found[0] - found[1])

    def _apply(self, x: Tensor, t: Tensor, _: Any, context: Tensor, control: Any, options: dict[str, Any]) -> Tensor:
        predicted: Tensor = self.inner_model.diffusion_model(x, t, context=context, transformer_options=options)
        return predicted


def base_model(denoiser: nn.Module | None = None) -> Any:
    """The model that a patcher holds."""
    return SimpleNamespace(diffusion_model=denoiser or Denoiser())


def sample(patcher: ModelPatcher, noise: Tensor, *conditions: Tensor, evaluations: int = 1) -> Tensor:
    """Draw from noise [samples, tokens, width], with so many evaluations of the guider for each sigma."""

    def sampler(guider: Guider, x: Tensor) -> Tensor:
        for sigma in SIGMAS:
            for _ in range(evaluations):
                x = x - 0.1 * guider(x, torch.full((len(x),), sigma))
        return x

    with torch.inference_mode():
        drawn: Tensor = patcher.wrapped(PLACES["SAMPLER_SAMPLE"], sampler, sampler)(Guider(patcher, conditions), noise)
    return drawn


@pytest.fixture
def comfyui(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both modules of ComfyUI that the node imports."""
    install(monkeypatch, "comfy.patcher_extension", WrappersMP=SimpleNamespace(**PLACES))
    install(monkeypatch, "comfy_api.torch_helpers", set_torch_compile_wrapper=set_torch_compile_wrapper)
