"""Train one of the fashion models: ``python -m examples.fashion.train --model dit``, ``flow`` or ``classifier``."""
# mypy: allow-untyped-calls

import functools
import json
import platform
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import diffusers
import torch
import typer
from rich.console import Console
from safetensors.torch import save

from examples.fashion.classifier import WEIGHTS as CLASSIFIER
from examples.fashion.classifier import FashionClassifier, agreement
from examples.fashion.data import FOLDER, NAMES, load_split
from examples.fashion.losses import classifier_loss, text_velocity_loss
from examples.fashion.models import new_dit, new_flow, parameter_count
from examples.fashion.optimise import Budget, Trained, optimise
from examples.fashion.pipeline import WEIGHTS, DigitsPipeline, FlowPipeline, ddim, flow_euler
from soda_compile.digits.data import LabelledImages
from soda_compile.digits.train import noise_loss, replaced, untied
from soda_compile.storage.files import write_atomic

Facts = dict[str, Any]


class Kind(StrEnum):
    """What can be trained."""

    DIT = "dit"
    FLOW = "flow"
    CLASSIFIER = "classifier"


DEFAULT_OUT = {Kind.DIT: WEIGHTS / "dit", Kind.FLOW: WEIGHTS / "flow", Kind.CLASSIFIER: CLASSIFIER}


def train_dit(data: LabelledImages, budget: Budget, console: Console, out: Path, facts: Facts) -> None:
    """Train the class-conditional model to predict noise, and store its pipeline in `out`."""
    model: Any = new_dit()
    model.to(data.images.device)
    count = parameter_count(model)
    trained: Trained[Any] = optimise(
        model, functools.partial(_dit_loss, ddim()), data, budget, console, model.transformer_blocks
    )
    pipeline = DigitsPipeline(untied(trained.model), ddim())
    store_pipeline(pipeline, out, told(trained, count, budget, facts))


def _dit_loss(scheduler: Any, *arguments: Any) -> torch.Tensor:
    model, images, labels = arguments
    return noise_loss(model, scheduler, images, labels)


def train_flow(data: LabelledImages, budget: Budget, console: Console, out: Path, facts: Facts) -> None:
    """Train the text-conditional model and its word vectors by flow matching, and store their pipeline in `out`."""
    model = new_flow().to(data.images.device)
    blocks: Any = model.transformer.transformer_blocks
    texts = model.words.tokenise([*NAMES, ""]).to(data.images.device)
    trained = optimise(model, text_velocity_loss(texts), data, budget, console, blocks)
    best = trained.model.cpu()
    pipeline = FlowPipeline(best.transformer, best.words, flow_euler())
    store_pipeline(pipeline, out, told(trained, parameter_count(model), budget, facts))


def train_classifier(
    data: LabelledImages, held_out: LabelledImages, budget: Budget, console: Console, out: Path, facts: Facts
) -> None:
    """Train the judge and store it as the file `out`, with what is told of it in the `.json` file beside."""
    model = FashionClassifier().to(data.images.device).train()
    trained = optimise(model, classifier_loss, data, budget, console)
    correct = agreement(trained.model, held_out.images, held_out.labels)
    console.print(f"The classifier is right on {correct:.2%} of {len(held_out)} test images.")
    stored = trained.model.half().cpu().state_dict()  # counts of batches stay integers
    weights = {name: tensor.contiguous() for name, tensor in stored.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, save(weights))
    facts = {**told(trained, parameter_count(model), budget, facts), "test_accuracy": correct}
    write_atomic(out.with_suffix(".json"), _json(facts))
    summarise(console, out, facts)


def told(trained: Trained[Any], parameters: int, budget: Budget, facts: Facts) -> Facts:
    """Return what is stored with weights, in the order it should be read."""
    images = trained.steps * budget.batch
    return {
        **facts,
        "parameters": parameters,
        "steps": trained.steps,
        "batch": budget.batch,
        "images": images,
        "learning_rate": budget.learning_rate,
        "seconds": round(trained.seconds, 1),
        "compile_seconds": round(trained.compile_seconds, 1),
        "images_per_second": round(images / trained.seconds, 1),
        "loss": trained.curve[-1],
        "curve": [round(loss, 5) for loss in trained.curve],
    }


def store_pipeline(pipeline: Any, out: Path, facts: Facts) -> None:
    """Write a pipeline in float16 with its training.json; the folder appears whole or not at all."""
    with replaced(out) as fresh:
        pipeline.to(torch.float16).save_pretrained(fresh)
        (fresh / "training.json").write_bytes(_json(facts))
    summarise(Console(), out, facts)


def summarise(console: Console, out: Path, facts: Facts) -> None:
    """Say how much was trained, how fast and how well."""
    console.print(
        f"Wrote {out}: {facts['parameters']:,} parameters, {facts['steps']} steps, {facts['images']:,} images seen "
        f"in {facts['seconds']} s, {facts['images_per_second']:,.0f} images/s, final loss {facts['loss']:.4f}",
        soft_wrap=True,
    )


def _json(facts: Facts) -> bytes:
    return (json.dumps(facts, indent=1) + "\n").encode()


def device_named(name: str) -> torch.device:
    """Return the device; "auto" is the GPU if there is one.

    Raises:
        typer.BadParameter: if it is neither the CPU nor a GPU that is there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu" or (name.partition(":")[0] == "cuda" and torch.cuda.is_available()):
        return torch.device(name)
    raise typer.BadParameter(f"{name!r} is not available: choose auto or cpu, or cuda where there is such a GPU")


def main(
    model: Annotated[Kind, typer.Option(help="What to train.")],
    out: Annotated[Path | None, typer.Option(help="Folder, or file of the classifier, to write to.")] = None,
    data: Annotated[Path, typer.Option(help="Folder with the four .gz files of Fashion-MNIST.")] = FOLDER,
    epochs: Annotated[float, typer.Option(min=0, help="Passes over the 60,000 training images.")] = 60,
    seconds: Annotated[float | None, typer.Option(min=1, help="Limit of wall-clock time, with compilation.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per training step.")] = 512,
    learning_rate: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 1e-3,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    compile: Annotated[bool, typer.Option(help="Run the model through Inductor while training.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Seed of initial weights, batches and noise.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Train one model on Fashion-MNIST and store it in float16 with what is to be told of its training."""
    target = device_named(device)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")  # TensorFloat-32 for what is not in bfloat16
    torch.manual_seed(seed)
    try:
        train, held_out = (split.to(target) for split in load_split(data))
    except (FileNotFoundError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--data") from None
    console, place = Console(), out or DEFAULT_OUT[model]
    budget = Budget(epochs, seconds, batch, learning_rate, compile)
    facts: Facts = {
        "model": model.value,
        "device": torch.cuda.get_device_name(target) if target.type == "cuda" else platform.machine() + " CPU",
        "seed": seed,
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    if model is Kind.CLASSIFIER:
        train_classifier(train, held_out, budget, console, place, facts)
    else:
        (train_dit if model is Kind.DIT else train_flow)(train, budget, console, place, facts)


if __name__ == "__main__":
    typer.run(main)
