"""The samplers of clothes: diffusers pipelines without a VAE, in pixel space."""
# mypy: allow-subclassing-any, allow-untyped-calls

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from examples.fashion.words import WordEncoder
from soda_compile.digits.pipeline import (
    DigitsPipeline,
    StepCallback,
    apply_guidance,
    denoise,
    finish,
    initial_noise,
    load_pipeline,
    require_output_type,
)

WEIGHTS = Path(__file__).parent / "weights"

__all__ = ["WEIGHTS", "DigitsPipeline", "FlowPipeline", "ddim", "flow_euler", "load_dit", "load_flow"]


def ddim() -> DDIMScheduler:
    """Return the sampler of the class-conditional model: linear betas, noise prediction, no clipping."""
    scheduler: DDIMScheduler = DDIMScheduler(num_train_timesteps=1000, clip_sample=False, timestep_spacing="trailing")
    return scheduler


def flow_euler() -> FlowMatchEulerDiscreteScheduler:
    """Return the sampler of the flow matching model: Euler steps of equal length, as images are small."""
    scheduler: FlowMatchEulerDiscreteScheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    return scheduler


class FlowPipeline(DiffusionPipeline):
    """Generation of 28x28 clothes from words, by flow matching with classifier-free guidance.

    Args:
        transformer: a Stable Diffusion 3 transformer over pixels, for velocity prediction.
        text_encoder: gives it the vectors of words.
        scheduler: a flow matching scheduler.
    """

    model_cpu_offload_seq: Any = "text_encoder->transformer"
    transformer: Any  # diffusers' mixins give no attribute a useful type
    text_encoder: Any
    scheduler: Any

    def __init__(
        self, transformer: SD3Transformer2DModel, text_encoder: WordEncoder, scheduler: SchedulerMixin
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, text_encoder=text_encoder, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        guidance_scale: float = 1.5,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
    ) -> Any:
        """Generate one image per prompt.

        Args:
            prompt: a text, or several, of words from the encoder's vocabulary, such as "ankle boot".
            guidance_scale: weight of classifier-free guidance; above 1 every step runs the transformer once on the
                conditional half followed by the unconditional half.
            num_inference_steps: sampler steps.
            generator: source of the initial noise; a list gives every sample its own.
            output_type: "np" float32 (n, 28, 28, 1) in [0, 1]; "pt" (n, 1, 28, 28) in [0, 1]; "pil" a list of images;
                "latent" (n, 1, 28, 28), the sampler's last state, nominally in [-1, 1] and not clamped.
            return_dict: return an ``ImagePipelineOutput`` rather than a tuple.
            callback_on_step_end: called as ``callback(pipe, step, timestep, {"latents": ...})`` after each step; the
                dict it returns may replace the latents.

        Returns:
            The images, as ``ImagePipelineOutput.images`` or as a tuple of one.

        Raises:
            ValueError: for an unknown word or output type, or no prompt.
        """
        require_output_type(output_type)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise ValueError("prompt needs one or more texts, got none")
        scale = guidance_scale if guidance_scale > 1 else None
        vectors, pooled = self._encode(prompts if scale is None else [*prompts, *[""] * len(prompts)])
        latents = initial_noise(self, len(prompts), generator)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            return self._predict_velocity(latents, timestep, vectors, pooled, scale)

        latents = denoise(self, latents, predict, callback_on_step_end)
        return finish(self, latents, output_type, return_dict)

    def _encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        tokens = self.text_encoder.tokenise(texts).to(self._execution_device)
        vectors, pooled = self.text_encoder(tokens)
        dtype = self.transformer.dtype
        return vectors.to(dtype), pooled.to(dtype)

    def _predict_velocity(
        self, latents: Tensor, timestep: Tensor, vectors: Tensor, pooled: Tensor, scale: float | None
    ) -> Tensor:
        batch = latents if scale is None else torch.cat([latents, latents])
        velocity: Tensor = self.transformer(
            hidden_states=batch,
            timestep=timestep.to(batch.device).expand(len(batch)),
            encoder_hidden_states=vectors,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        return velocity if scale is None else apply_guidance(velocity, scale)


def load_dit(dtype: torch.dtype = torch.float32, folder: Path = WEIGHTS / "dit") -> DigitsPipeline:
    """Load the class-conditional pipeline from disk, without the network and without its progress bar.

    It is the pipeline of the digits with other weights; class_labels index examples.fashion.data.NAMES.

    Args:
        dtype: dtype of the weights, which are stored in float16.
        folder: a folder in the layout of ``DiffusionPipeline.save_pretrained``.

    Raises:
        FileNotFoundError: if ``folder`` holds no pipeline.
    """
    return load_pipeline(DigitsPipeline, dtype, folder, "python -m examples.fashion.train --model dit")


def load_flow(dtype: torch.dtype = torch.float32, folder: Path = WEIGHTS / "flow") -> FlowPipeline:
    """Load the flow matching pipeline, as `load_dit` loads the other one."""
    return load_pipeline(FlowPipeline, dtype, folder, "python -m examples.fashion.train --model flow")
