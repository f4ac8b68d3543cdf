"""The sampler of the digits model: a diffusers pipeline without a VAE, in pixel space."""
# mypy: allow-subclassing-any, allow-untyped-calls

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging as diffusers_logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

WEIGHTS = Path(__file__).parent / "weights"
OUTPUT_TYPES = ("np", "pt", "pil", "latent")

P = TypeVar("P", bound=DiffusionPipeline)
StepCallback = Callable[[DiffusionPipeline, int, Tensor, dict[str, Any]], dict[str, Any]]


class DigitsPipeline(DiffusionPipeline):
    """Class-conditional generation of 8x8 digits with classifier-free guidance.

    Args:
        transformer: a DiT over pixels whose last label embedding is the null class.
        scheduler: any diffusers scheduler for epsilon prediction.
    """

    transformer: Any  # diffusers' mixins give neither attribute a useful type
    scheduler: Any

    def __init__(self, transformer: DiTTransformer2DModel, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        guidance_scale: float = 1.5,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
    ) -> Any:
        """Generate one digit per label.

        Args:
            class_labels: the digits to draw, each in 0..9.
            guidance_scale: weight of classifier-free guidance; above 1 every step runs the transformer once on the
                conditional half followed by the unconditional half.
            num_inference_steps: sampler steps.
            generator: source of the initial noise; a list gives every sample its own.
            output_type: "np" float32 (n, 8, 8, 1) in [0, 1]; "pt" (n, 1, 8, 8) in [0, 1]; "pil" a list of images;
                "latent" (n, 1, 8, 8), the sampler's last state, nominally in [-1, 1] and not clamped.
            return_dict: return an ``ImagePipelineOutput`` rather than a tuple.
            callback_on_step_end: called as ``callback(pipe, step, timestep, {"latents": ...})`` after each step; the
                dict it returns may replace the latents.

        Returns:
            The images, as ``ImagePipelineOutput.images`` or as a tuple of one.

        Raises:
            ValueError: for a label outside the classes or an unknown output type.
        """
        require_output_type(output_type)
        guided = guidance_scale > 1
        labels = self._label_tensor(class_labels, guided)
        latents = initial_noise(self, len(class_labels), generator)
        self.scheduler.set_timesteps(num_inference_steps)
        latents = latents * self.scheduler.init_noise_sigma

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            return self._predict_noise(latents, timestep, labels, guidance_scale if guided else None)

        latents = denoise(self, latents, predict, callback_on_step_end)
        return finish(self, latents, output_type, return_dict)

    def _label_tensor(self, class_labels: Sequence[int], guided: bool) -> Tensor:
        classes = self.transformer.config.num_embeds_ada_norm
        bad = [label for label in class_labels if not 0 <= int(label) < classes]
        if bad or not len(class_labels):
            raise ValueError(f"class_labels needs one or more labels in 0..{classes - 1}, got {list(class_labels)}")
        labels = torch.tensor([int(label) for label in class_labels], device=self._execution_device)
        return torch.cat([labels, torch.full_like(labels, classes)]) if guided else labels  # index `classes` is null

    def _predict_noise(self, latents: Tensor, timestep: Tensor, labels: Tensor, guidance: float | None) -> Tensor:
        batch = latents if guidance is None else torch.cat([latents, latents])
        batch = self.scheduler.scale_model_input(batch, timestep)
        timesteps = timestep.to(batch.device).expand(len(batch))
        noise: Tensor = self.transformer(batch, timestep=timesteps, class_labels=labels).sample
        return noise if guidance is None else apply_guidance(noise, guidance)


def require_output_type(output_type: str) -> None:
    """Raise a ValueError unless `to_output` knows this type."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type {output_type!r} is unknown: choose one of {', '.join(OUTPUT_TYPES)}")


def initial_noise(pipeline: Any, count: int, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
    """Draw standard normal latents (count, channels, size, size) in the dtype and on the device of the transformer."""
    if isinstance(generator, list) and len(generator) != count:
        raise ValueError(f"got {len(generator)} generators for {count} samples: pass one per sample, or one")
    config = pipeline.transformer.config
    shape = (count, config.in_channels, config.sample_size, config.sample_size)
    device, dtype = pipeline._execution_device, pipeline.transformer.dtype
    noise: Tensor = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
    return noise


def denoise(
    pipeline: Any, latents: Tensor, predict: Callable[[Tensor, Tensor], Tensor], callback: StepCallback | None
) -> Tensor:
    """Run the sampler over its timesteps, with ``predict(latents, timestep)``; return its last state."""
    for step, timestep in enumerate(pipeline.progress_bar(pipeline.scheduler.timesteps)):
        latents = pipeline.scheduler.step(predict(latents, timestep), timestep, latents).prev_sample
        if callback is not None:
            changed = callback(pipeline, step, timestep, {"latents": latents})
            latents = changed.get("latents", latents)
    return latents


def finish(pipeline: Any, latents: Tensor, output_type: str, return_dict: bool) -> Any:
    """End a generation: return what the caller asked for, as an ``ImagePipelineOutput`` or a tuple of one."""
    images = to_output(latents, output_type)
    pipeline.maybe_free_model_hooks()
    return ImagePipelineOutput(images=images) if return_dict else (images,)


def apply_guidance(predicted: Tensor, scale: float) -> Tensor:
    """Combine a conditional half and the unconditional half after it: classifier-free guidance, arXiv 2207.12598."""
    conditional, unconditional = predicted.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def to_output(latents: Tensor, output_type: str) -> Any:
    """Turn latents (n, channels, height, width), nominally in [-1, 1], into what the caller asked for."""
    if output_type == "latent":
        return latents
    images = (latents / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return images
    array = images.cpu().permute(0, 2, 3, 1).float().numpy()
    return DiffusionPipeline.numpy_to_pil(array) if output_type == "pil" else array


def load(dtype: torch.dtype = torch.float32, folder: Path = WEIGHTS) -> DigitsPipeline:
    """Load the trained pipeline from disk, without the network and without its progress bar.

    Args:
        dtype: dtype of the transformer's weights, which are stored in float16.
        folder: a folder in the layout of ``DiffusionPipeline.save_pretrained``.

    Raises:
        FileNotFoundError: if ``folder`` holds no pipeline.
    """
    return load_pipeline(DigitsPipeline, dtype, folder, "python -m soda_compile.digits.train")


def load_pipeline(kind: type[P], dtype: torch.dtype, folder: Path, training: str) -> P:
    """Load a trained pipeline from disk, without the network and without its progress bar.

    Args:
        kind: class of the pipeline.
        dtype: dtype of its weights, whatever they are stored in.
        folder: a folder in the layout of ``DiffusionPipeline.save_pretrained``.
        training: the command that makes such a folder.

    Raises:
        FileNotFoundError: if ``folder`` holds no pipeline.
    """
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"no pipeline in {folder}: make one with {training}")
    with _no_progress_bars():
        pipeline: P = kind.from_pretrained(folder, local_files_only=True)
    if pipeline.dtype != dtype:
        pipeline.to(dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Let diffusers load without a bar, as two small files need none; what the caller had chosen is kept."""
    shown = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            diffusers_logging.enable_progress_bar()
