"""Judge the trained model: ``python -m soda_compile.digits.evaluate``."""

from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from soda_compile.digits.classifier import DigitClassifier, accuracy, frechet_distance, load_classifier
from soda_compile.digits.data import LabelledImages, load_split
from soda_compile.digits.pipeline import DigitsPipeline, load


def sample(
    pipeline: DigitsPipeline, count: int, seed: int, steps: int = 50, guidance: float = 1.5, batch: int = 50
) -> LabelledImages:
    """Generate ``count`` digits, labels 0..9 in turn.

    Every sample has a generator of its own, so its noise does not depend on the batch, and different seeds never
    share noise.

    Returns:
        Images of shape (count, 1, 8, 8), float32, clamped to [-1, 1], with the labels asked for.
    """
    labels = torch.arange(count) % 10
    images = []
    for start in track(range(0, count, batch), description=f"samples, seed {seed}"):
        stop = min(start + batch, count)
        generators = [torch.Generator().manual_seed(seed * 1_000_000 + index) for index in range(start, stop)]
        chosen = labels[start:stop].tolist()
        output = pipeline(chosen, guidance, steps, generator=generators, output_type="pt")
        images.append(output.images.float() * 2 - 1)
    return LabelledImages(torch.cat(images), labels)


def nearest(images: Tensor, reference: Tensor) -> float:
    """Return the median L2 distance in pixels from each image (n, 1, 8, 8) to its nearest reference (m, 1, 8, 8)."""
    return float(torch.cdist(images.flatten(1), reference.flatten(1)).min(1).values.median())


def report(classifier: DigitClassifier, first: LabelledImages, second: LabelledImages) -> dict[str, str]:
    """Compare two sets of samples with the real digits and with each other.

    Returns:
        A line of text per figure, in the order they should be read.
    """
    train, held_out = load_split()
    features = {
        name: classifier.features(digits.images).numpy()
        for name, digits in {"train": train, "held out": held_out, "first": first, "second": second}.items()
    }

    def distance(a: str, b: str) -> str:
        return f"{frechet_distance(features[a], features[b]):.1f}"

    return {
        f"classifier accuracy, {len(held_out)} held-out real digits": f"{accuracy(classifier, *_pair(held_out)):.1%}",
        f"class agreement, {len(first)} samples": f"{accuracy(classifier, *_pair(first)):.1%}",
        f"class agreement, {len(second)} samples of another seed": f"{accuracy(classifier, *_pair(second)):.1%}",
        "Fréchet distance, samples to training digits": distance("first", "train"),
        "Fréchet distance, samples to held-out digits": distance("first", "held out"),
        "Fréchet distance, training to held-out digits": distance("train", "held out"),
        "Fréchet distance, two seeds (noise floor)": distance("first", "second"),
        "nearest training digit, from samples (median L2)": f"{nearest(first.images, train.images):.2f}",
        "nearest training digit, from held-out digits": f"{nearest(held_out.images, train.images):.2f}",
    }


def _pair(digits: LabelledImages) -> tuple[Tensor, Tensor]:
    return digits.images, digits.labels


def main(
    samples: Annotated[int, typer.Option(min=2, help="Samples per seed.")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Sampler steps.")] = 50,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance.")] = 1.5,
    seed: Annotated[int, typer.Option(min=0, help="First of the two seeds.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Generate two sets of samples and print how good and how far apart they are."""
    torch.set_num_threads(threads)
    pipeline, classifier = load(), load_classifier()
    first, second = (sample(pipeline, samples, number, steps, guidance) for number in (seed, seed + 1))
    table = Table("figure", "value", title=f"{type(pipeline.scheduler).__name__}, {steps} steps, guidance {guidance}")
    for name, value in report(classifier, first, second).items():
        table.add_row(name, value)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
