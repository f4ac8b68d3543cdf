"""Train the photographs model: ``python -m examples.photos.train``."""
# mypy: allow-untyped-calls

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from examples.photos.data import PHOTOGRAPHS, SIZE, Photographs, load_photographs
from examples.photos.pipeline import WEIGHTS, DigitsPipeline, load
from soda_compile.digits.train import LABEL_DROPOUT, ema, initialise, replaced, untied

CLASSES = len(PHOTOGRAPHS)
WARM_STEPS = 200
STORED_EVERY_MINUTES = 5.0


@dataclass(frozen=True)
class Progress:
    """A point of the loss curve.

    Attributes:
        step: training steps done.
        minutes: wall-clock minutes they took.
        loss: mean over the steps since the last point, squared error of the predicted velocity.
    """

    step: int
    minutes: float
    loss: float


def new_transformer() -> DiTTransformer2DModel:
    """Return the untrained model: 256 tokens of 4x4 pixels, 6 layers, 3 heads of 64."""
    model: DiTTransformer2DModel = DiTTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=64,
        in_channels=3,
        num_layers=6,
        sample_size=SIZE,
        patch_size=4,
        num_embeds_ada_norm=CLASSES,
    )
    initialise(model)
    model.eval()  # in train mode diffusers drops labels in each block on its own; there is no other dropout
    return model


def resumed(folder: Path) -> tuple[DiTTransformer2DModel, list[Progress]]:
    """Return a stored model, tied again and ready to be trained on, and its loss curve so far.

    Raises:
        FileNotFoundError: if ``folder`` holds no trained model.
    """
    model = new_transformer()
    model.load_state_dict(load(folder=folder).transformer.state_dict())
    return model, [Progress(**point) for point in json.loads((folder / "training.json").read_text())]


def new_scheduler() -> DDIMScheduler:
    """Return the sampler: cosine betas, velocity prediction, no clipping."""
    scheduler: DDIMScheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    return scheduler


def velocity_loss(model: Callable[..., Any], scheduler: Any, images: Tensor, labels: Tensor) -> Tensor:
    """Return the mean squared error of the predicted velocity, at timesteps spread evenly over the batch."""
    size, horizon = len(labels), len(scheduler.alphas_cumprod)
    timesteps = ((torch.arange(size) + torch.rand(size)) * horizon / size).long()
    noise = torch.randn_like(images)
    noisy = scheduler.add_noise(images, noise, timesteps)
    velocity = scheduler.get_velocity(images, noise, timesteps)
    labels = torch.where(torch.rand(size) < LABEL_DROPOUT, CLASSES, labels)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = model(noisy, timestep=timesteps, class_labels=labels, return_dict=False)[0]
    return functional.mse_loss(predicted.float(), velocity)


def train(
    model: DiTTransformer2DModel,
    past: list[Progress],
    photographs: Photographs,
    minutes: float,
    batch: int,
    learning_rate: float,
    store: Callable[[DiTTransformer2DModel, list[Progress]], None],
) -> None:
    """Train for a given time, the learning rate falling with the clock, and store the averaged model now and then.

    Args:
        model: to train in place.
        past: its loss curve from earlier runs; the new points are counted on from its last one. The optimizer, the
            learning rate and the average start anew.
        photographs: what to crop the images from.
        minutes: wall-clock time to train for, compilation included.
        batch: images in a step.
        learning_rate: its peak.
        store: takes the exponential moving average of the model and the loss curve so far; called every few minutes
            and at the end.
    """
    compiled = torch.compile(model)
    average = AveragedModel(model, multi_avg_fn=ema)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    scheduler, curve, losses = new_scheduler(), list(past), list[float]()
    last = past[-1] if past else Progress(0, 0.0, math.nan)
    started = stored = time.monotonic()
    for step, (images, labels) in enumerate(photographs.batches(batch)):
        elapsed = (time.monotonic() - started) / 60
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / WARM_STEPS) * _falling(elapsed / minutes)
        loss = velocity_loss(compiled, scheduler, images, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        losses.append(float(loss.detach()))
        if len(losses) == 100:
            mean = round(sum(losses) / len(losses), 5)
            curve.append(Progress(last.step + step + 1, round(last.minutes + elapsed, 2), mean))
            losses.clear()
        if elapsed >= minutes:
            break
        if time.monotonic() - stored >= 60 * STORED_EVERY_MINUTES:
            store(untied(average.module), curve)
            stored = time.monotonic()
    store(untied(average.module), curve)


def _falling(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def main(
    out: Annotated[Path, typer.Option(help="Folder to write the weights to.")] = WEIGHTS,
    minutes: Annotated[float, typer.Option(min=0, help="Wall-clock time to train for.")] = 55,
    batch: Annotated[int, typer.Option(min=1, help="Images per training step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of initial weights, batches and noise.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; more than one helps on an idle machine only.")] = 1,
    resume: Annotated[Path | None, typer.Option(help="Folder of weights to train on from; take another seed.")] = None,
) -> None:
    """Train the diffusion transformer on crops of photographs and store it in float16 with its loss curve."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    console = Console()

    def store(model: DiTTransformer2DModel, curve: list[Progress]) -> None:
        with replaced(out) as fresh:
            DigitsPipeline(model, new_scheduler()).to(torch.float16).save_pretrained(fresh)
            (fresh / "training.json").write_text(json.dumps([asdict(point) for point in curve]))
        console.print(f"Wrote {out}", curve[-1] if curve else "")

    model, past = resumed(resume) if resume else (new_transformer(), [])
    train(model, past, load_photographs(), minutes, batch, learning_rate, store)


if __name__ == "__main__":
    typer.run(main)
