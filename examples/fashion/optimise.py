"""The training loop that all three models share: batches on the device, no waiting for it, an end at a given time."""
# mypy: allow-untyped-calls

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from rich.console import Console
from torch import Tensor, nn

from soda_compile.digits.data import LabelledImages
from soda_compile.digits.train import ema

EMA_DECAY = 0.9995
WARM_STEPS = 200
WINDOW = 50
"""Steps between two points of the loss curve."""

Model = TypeVar("Model", bound=nn.Module)
Loss = Callable[[Callable[..., Tensor], Tensor, Tensor], Tensor]
"""Takes a model, images (n, 1, 28, 28) and labels (n,), and returns a scalar."""


@dataclass(frozen=True)
class Budget:
    """How long to train, whichever limit is reached first, and how fast.

    Attributes:
        epochs: passes over the data.
        seconds: wall-clock time, compilation included; no limit if None.
        batch: images per step.
        learning_rate: its peak, between a warm-up and a cosine decay to zero.
        compile: whether to run the blocks of the model through Inductor.
    """

    epochs: float
    seconds: float | None
    batch: int
    learning_rate: float
    compile: bool = True


@dataclass(frozen=True)
class Trained(Generic[Model]):
    """A trained model, on the device it was trained on, and how it came about.

    Attributes:
        model: the exponential moving average of the weights, in eval mode.
        steps: training steps done.
        seconds: how long they took.
        compile_seconds: how long compilation, in a first step that is not counted, took before them.
        curve: mean loss of every `WINDOW` steps.
    """

    model: Model
    steps: int
    seconds: float
    compile_seconds: float
    curve: list[float] = field(default_factory=list)


def optimise(
    model: Model, loss: Loss, data: LabelledImages, budget: Budget, console: Console, blocks: Iterable[nn.Module] = ()
) -> Trained[Model]:
    """Train a model in place and return its moving average.

    The learning rate follows the larger of the fractions of steps and of time that are used up, so it comes down to
    zero within the limit on a machine of any speed.

    Args:
        model: on the device of the data; whether it is in train mode is up to the caller.
        loss: what to minimise.
        data: all of it on one device.
        budget: limits.
        console: where progress is told.
        blocks: parts of the model that are alike; each is compiled by itself, which takes them a fraction of the
            time that the whole model would.

    Raises:
        ValueError: if a batch is larger than the data.
        FloatingPointError: if the loss is not finite in the end.
    """
    if budget.batch > len(data):
        raise ValueError(f"a batch of {budget.batch} needs as many images, got {len(data)}")
    device = data.images.device
    total = max(1, math.ceil(budget.epochs * (len(data) // budget.batch)))
    started = time.monotonic()
    average = copy.deepcopy(model).eval()
    for block in blocks if budget.compile else ():
        block.compile(dynamic=False)
    batches = _batches(data, budget.batch)
    loss(model, *next(batches)).backward()
    _synchronize(device)
    ready = time.monotonic()
    limit = math.inf if budget.seconds is None else max(1.0, budget.seconds - (ready - started))
    console.print(f"Ready after {ready - started:.0f} s; {total} steps or {limit:.0f} s to go.")

    weights, averaged = list[Tensor](model.parameters()), list[Tensor](average.parameters())
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    losses, window = list[Tensor](), torch.zeros((), device=device)
    step, told = 0, 0.0
    while (used := max(step / total, (time.monotonic() - ready) / limit)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = budget.learning_rate * _warm_cosine(step, used)
        optimizer.zero_grad()
        value = loss(model, *next(batches))
        value.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        with torch.no_grad():
            ema(averaged, weights, step, EMA_DECAY)
        window += value.detach()
        step += 1
        if step % WINDOW == 0:
            losses.append(window / WINDOW)
            window = torch.zeros((), device=device)
            if used - told >= 0.1:  # the only waiting for the device: ten times in all
                told = used
                console.print(f"{used:4.0%}  step {step}  loss {float(losses[-1]):.4f}")
    _synchronize(device)
    seconds = time.monotonic() - ready
    _copy_buffers(model, average)
    if step % WINDOW:
        losses.append(window / (step % WINDOW))
    curve = torch.stack(losses).tolist()
    if not math.isfinite(curve[-1]):
        raise FloatingPointError(f"the loss is {curve[-1]} after {step} steps: try a lower learning rate")
    return Trained(average, step, seconds, ready - started, curve)


def _warm_cosine(step: int, used: float) -> float:
    return min(1.0, (step + 1) / WARM_STEPS) * 0.5 * (1 + math.cos(math.pi * used))


def _batches(data: LabelledImages, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of one size without end, from a fresh shuffle each epoch."""
    while True:
        order = torch.randperm(len(data), device=data.labels.device)
        for chosen in order[: len(data) // size * size].split(size):
            yield data.images[chosen], data.labels[chosen]


def _copy_buffers(model: nn.Module, average: nn.Module) -> None:
    """Give the average the running statistics of batch normalisation, which are averages already."""
    for target, source in zip(average.buffers(), model.buffers(), strict=True):
        target.copy_(source)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
