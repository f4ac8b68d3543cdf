"""The registry of trained models: one entry each."""
# mypy: allow-untyped-calls

from collections.abc import Callable, Sequence
from typing import Any

import torch
import typer
from torch import Tensor

from benchmarks.leaderboard.subject import Sampler, Subject


def _labelled(pipe: Any, seeds: Sequence[int], steps: int) -> Tensor:
    """Latents of a pipeline that draws one of ten classes."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    labels = [seed % 10 for seed in seeds]
    latents: Tensor = pipe(
        class_labels=labels, num_inference_steps=steps, generator=generators, output_type="latent"
    ).images
    return latents


def _pixels(pipe: Any, latents: Tensor) -> Tensor:
    return (latents.float() / 2 + 0.5).clamp(0, 1)


def noise_samplers() -> tuple[Sampler, ...]:
    """Samplers of models that predict noise: each with the spacings of timesteps that suit few steps."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    def of(kind: Any, **options: Any) -> Callable[[Any], Any]:
        return lambda scheduler: kind.from_config(scheduler.config, **options)

    multistep: dict[str, dict[str, Any]] = {
        "trailing": {"timestep_spacing": "trailing"},
        "linspace": {"timestep_spacing": "linspace"},
        "trailing, order 3": {"timestep_spacing": "trailing", "solver_order": 3},
        "log SNR": {"timestep_spacing": "linspace", "use_lu_lambdas": True},
    }
    unipc = {name: options for name, options in multistep.items() if "use_lu_lambdas" not in options}
    spacings = ("trailing", "leading", "linspace")
    return (
        Sampler("DDIM", {each: of(DDIMScheduler, timestep_spacing=each) for each in spacings}),
        Sampler("DPM++", {name: of(DPMSolverMultistepScheduler, **each) for name, each in multistep.items()}),
        Sampler("UniPC", {name: of(UniPCMultistepScheduler, **each) for name, each in unipc.items()}),
    )


def flow_samplers() -> tuple[Sampler, ...]:
    """Samplers of models that predict a velocity (flow matching), with the shift of the original."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
    from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    def multistep(kind: Any, order: int) -> Callable[[Any], Any]:
        return lambda scheduler: kind(
            solver_order=order, prediction_type="flow_prediction", use_flow_sigmas=True,
            flow_shift=scheduler.config.shift, num_train_timesteps=scheduler.config.num_train_timesteps,
        )  # fmt: skip

    def of(kind: Any, **options: Any) -> Callable[[Any], Any]:
        return lambda scheduler: kind.from_config(scheduler.config, **options)

    return (
        Sampler("Euler", {"as the original": of(FlowMatchEulerDiscreteScheduler)}),
        Sampler("Heun", {"as the original": of(FlowMatchHeunDiscreteScheduler)}),
        Sampler("DPM++", {f"order {each}": multistep(DPMSolverMultistepScheduler, each) for each in (2, 3)}),
        Sampler("UniPC", {f"order {each}": multistep(UniPCMultistepScheduler, each) for each in (2, 3)}),
    )


def digits(device: str) -> Subject:
    from soda_compile.digits.classifier import load_classifier
    from soda_compile.digits.data import load_split
    from soda_compile.digits.pipeline import load

    judge = load_classifier().to(device)

    def real(count: int) -> Tensor:
        return (load_split()[0].images[:count] / 2 + 0.5).to(device)

    return Subject(
        "digits", "digits, 8x8 pixels, DiT, DDIM, 50 steps, guidance 1.5", load().to(device), _labelled, _pixels,
        lambda images: judge(images * 2 - 1).argmax(1), lambda images: judge.features(images * 2 - 1), real,
        noise_samplers(), batch=100,
    )  # fmt: skip


def photos(device: str) -> Subject:
    from examples.photos.data import load_photographs
    from examples.photos.judge import features
    from examples.photos.pipeline import load

    photographs = load_photographs()

    def crops(count: int, seed: int) -> Tensor:
        labels = torch.arange(count) % len(photographs.scaled)
        return photographs.crops(labels, torch.Generator().manual_seed(seed)).to(device)

    reference = features(crops(1000, 1234))
    spread = reference.std(0)
    means = reference.unflatten(0, (-1, len(photographs.scaled))).mean(0) / spread

    return Subject(
        "photos", "photos, 64x64 pixels, DiT, DDIM, 50 steps, guidance 1.5", load().to(device), _labelled, _pixels,
        lambda images: torch.cdist(features(images * 2 - 1) / spread, means).argmin(1),
        lambda images: features(images * 2 - 1), lambda count: crops(count, 1) / 2 + 0.5,
        noise_samplers(), batch=50 if device == "cpu" else 100,
    )  # fmt: skip


def _worded(pipe: Any, seeds: Sequence[int], steps: int) -> Tensor:
    """Latents of a pipeline that draws the words of one of ten classes."""
    from examples.fashion.data import NAMES

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    prompts = [NAMES[seed % len(NAMES)] for seed in seeds]
    latents: Tensor = pipe(prompts, num_inference_steps=steps, generator=generators, output_type="latent").images
    return latents


def _fashion(name: str, title: str, pipe: Any, run: Any, samplers: tuple[Sampler, ...], device: str) -> Subject:
    from examples.fashion.classifier import load_classifier
    from examples.fashion.data import load_split

    judge = load_classifier().to(device)
    return Subject(
        name, f"{title}, 28x28 pixels, 50 steps, guidance 1.5", pipe.to(device), run, _pixels,
        lambda images: judge(images * 2 - 1).argmax(1), lambda images: judge.features(images * 2 - 1),
        lambda count: (load_split()[1].images[:count] / 2 + 0.5).to(device), samplers, batch=100,
    )  # fmt: skip


def fashion_dit(device: str) -> Subject:
    from examples.fashion.pipeline import load_dit

    return _fashion("fashion_dit", "clothes by class, DiT, DDIM", load_dit(), _labelled, noise_samplers(), device)


def fashion_flow(device: str) -> Subject:
    from examples.fashion.pipeline import load_flow

    title = "clothes by words, SD3 transformer, flow matching, Euler"
    return _fashion("fashion_flow", title, load_flow(), _worded, flow_samplers(), device)


MODELS: dict[str, Callable[[str], Subject]] = {
    "digits": digits,
    "photos": photos,
    "fashion_dit": fashion_dit,
    "fashion_flow": fashion_flow,
}


def models_named(names: str) -> list[str]:
    """Return names of models, given with commas; all where none is given.

    Raises:
        typer.BadParameter: For a name that is none of them.
    """
    wanted = [name for name in names.split(",") if name] or list(MODELS)
    unknown = [name for name in wanted if name not in MODELS]
    if unknown:
        raise typer.BadParameter(f"unknown model {unknown[0]!r}; there are {', '.join(MODELS)}")
    return wanted
