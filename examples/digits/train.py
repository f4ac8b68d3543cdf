"""Train the digits model and its judge: ``python -m soda_compile.digits.train``."""
# mypy: allow-untyped-calls

import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel

from soda_compile.digits.classifier import DigitClassifier, accuracy
from soda_compile.digits.data import LabelledImages, load_split
from soda_compile.digits.pipeline import WEIGHTS, DigitsPipeline

CLASSES = 10
LABEL_DROPOUT = 0.1
EMA_DECAY = 0.998

_Tensors = tuple[Tensor, ...] | list[Tensor]


def new_transformer() -> DiTTransformer2DModel:
    """Return the untrained model: 64 tokens of one pixel, 6 layers, 4 heads of 32."""
    model: DiTTransformer2DModel = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=1,
        num_layers=6,
        sample_size=8,
        patch_size=1,
        num_embeds_ada_norm=CLASSES,
    )
    initialise(model)
    model.eval()  # in train mode diffusers drops labels in each block on its own; there is no other dropout
    return model


def initialise(model: Any) -> None:
    """Initialise and tie as in DiT (arXiv 2212.09748); the constructor of diffusers does neither.

    Residual branches start closed (adaLN-Zero), so the first output is zero, and all blocks share one embedder of
    timestep and label. Unlike in DiT, label embeddings keep unit variance: at 0.02 a short training ignores them.
    """
    modulations = [block.norm1.linear for block in model.transformer_blocks]
    initialise_linears(model, zero=(*modulations, model.proj_out_1, model.proj_out_2))
    for block in model.transformer_blocks:
        block.norm1.emb = model.transformer_blocks[0].norm1.emb


def initialise_linears(model: nn.Module, zero: Iterable[nn.Linear]) -> None:
    """Give all linear layers Xavier weights and no bias, except those of `zero`, which close branches: no weight."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for linear in zero:
        nn.init.zeros_(linear.weight)


def _batches(data: LabelledImages, size: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``steps`` batches, going through a fresh shuffle of the data each epoch."""
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.cat([order, torch.randperm(len(data))])
        chosen, order = order[:size], order[size:]
        yield data.images[chosen], data.labels[chosen]


def _warm_cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    warm = max(1, steps // 20)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )


def ema(averaged: _Tensors, current: _Tensors, count: Tensor | int, decay: float = EMA_DECAY) -> None:
    """Average weights in place, as `multi_avg_fn` of an `AveragedModel`."""
    # a short memory at first, so that the average forgets the initial weights
    decay = min(decay, (1 + float(count)) / (10 + float(count)))
    torch._foreach_lerp_(averaged, current, 1 - decay)


def spread_evenly(size: int, device: torch.device) -> Tensor:
    """Return `size` random numbers of [0, 1) in rising order, one of each interval of 1 / size."""
    return (torch.arange(size, device=device) + torch.rand(size, device=device)) / size


def with_null(labels: Tensor) -> Tensor:
    """Replace some labels (n,) with the null class, as classifier-free guidance needs."""
    return torch.where(torch.rand(len(labels), device=labels.device) < LABEL_DROPOUT, CLASSES, labels)


@contextmanager
def mixed_precision(device: torch.device) -> Iterator[None]:
    """Compute products in bfloat16, which is fast on GPUs and on CPUs with matrix units."""
    # except in the fused attention kernel of CPUs
    attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16), attention:
        yield


def noise_loss(model: Callable[..., Any], scheduler: Any, images: Tensor, labels: Tensor) -> Tensor:
    """Return the mean squared error of the predicted noise, at timesteps spread evenly over the batch."""
    timesteps = (spread_evenly(len(labels), labels.device) * len(scheduler.alphas_cumprod)).long()
    noise = torch.randn_like(images)
    noisy = scheduler.add_noise(images, noise, timesteps)
    labels = with_null(labels)
    with mixed_precision(images.device):
        predicted = model(noisy, timestep=timesteps, class_labels=labels, return_dict=False)[0]
    return functional.mse_loss(predicted.float(), noise)


def train_transformer(
    data: LabelledImages, scheduler: DDIMScheduler, steps: int, batch: int, learning_rate: float
) -> DiTTransformer2DModel:
    """Train the diffusion transformer and return its exponential moving average, float32."""
    model = new_transformer()
    compiled = torch.compile(model)
    average = AveragedModel(model, multi_avg_fn=ema)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = _warm_cosine(optimizer, steps)
    for images, labels in _shown(_batches(data, batch, steps), "transformer", steps):
        loss = noise_loss(compiled, scheduler, images, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
    return untied(average.module)


def untied(model: Any) -> DiTTransformer2DModel:
    """Return a copy, ready to sample; the stored format keeps an embedder per block."""
    copied: DiTTransformer2DModel = DiTTransformer2DModel.from_config(model.config)
    copied.load_state_dict(model.state_dict())
    copied.eval()
    return copied


def train_classifier(data: LabelledImages, steps: int) -> DigitClassifier:
    """Train the judge on images with a little noise added, as a sampler may leave some."""
    model = DigitClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = _warm_cosine(optimizer, steps)
    for images, labels in _shown(_batches(data, 128, steps), "classifier", steps):
        loss = functional.cross_entropy(model(images + 0.1 * torch.randn_like(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yield a scratch folder to write to, which then takes the place of `folder`: whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        fresh, old = Path(scratch) / "new", Path(scratch) / "old"
        fresh.mkdir()
        yield fresh
        if folder.exists():
            shutil.move(folder, old)
        shutil.move(fresh, folder)


def save(pipeline: DigitsPipeline, classifier: DigitClassifier, folder: Path) -> None:
    """Write both models in float16; the folder appears whole or not at all."""
    with replaced(folder) as fresh:
        pipeline.to(torch.float16).save_pretrained(fresh)
        weights = {name: tensor.half().contiguous() for name, tensor in classifier.state_dict().items()}
        save_file(weights, fresh / "classifier.safetensors")


def _shown(batches: Iterable[tuple[Tensor, Tensor]], name: str, steps: int) -> Iterable[tuple[Tensor, Tensor]]:
    return track(batches, description=name, total=steps)


def main(
    out: Annotated[Path, typer.Option(help="Folder to write the weights to.")] = WEIGHTS,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of the transformer.")] = 3000,
    batch: Annotated[int, typer.Option(min=1, help="Images per training step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    classifier_steps: Annotated[int, typer.Option(min=1, help="Training steps of the classifier.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of initial weights, batches and noise.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; more than one helps on an idle machine only.")] = 1,
) -> None:
    """Train the digits diffusion transformer and its judge on the training split, and store both."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    data, held_out = load_split()
    classifier = train_classifier(data, classifier_steps)
    scheduler = DDIMScheduler(num_train_timesteps=1000, clip_sample=False, timestep_spacing="trailing")
    transformer = train_transformer(data, scheduler, steps, batch, learning_rate)
    save(DigitsPipeline(transformer, scheduler), classifier, out)
    correct = accuracy(classifier, held_out.images, held_out.labels)
    Console().print(f"Wrote {out}. The classifier is right on {correct:.1%} of {len(held_out)} held-out digits.")


if __name__ == "__main__":
    typer.run(main)
