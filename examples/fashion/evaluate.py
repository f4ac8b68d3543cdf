"""Print how good the fashion models are: ``python -m examples.fashion.evaluate``."""
# mypy: allow-untyped-calls

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from examples.fashion.classifier import agreement, judge, load_classifier
from examples.fashion.data import FOLDER, NAMES, load_split
from examples.fashion.pipeline import FlowPipeline, load_dit, load_flow
from soda_compile.digits.classifier import frechet_distance
from soda_compile.digits.data import LabelledImages

BATCH = 100
MODELS = {"dit": load_dit, "flow": load_flow}


def sample(pipe: Any, labels: Tensor, seed: int, steps: int = 50) -> Tensor:
    """Draw images (n, 1, 28, 28) in [-1, 1]; each has a generator of its own, so batches do not matter.

    Args:
        pipe: one of the fashion pipelines.
        labels: classes (n,).
        seed: that of the first image; the others follow.
        steps: of the sampler.
    """
    drawn = []
    for start in range(0, len(labels), BATCH):
        chosen = labels[start : start + BATCH].tolist()
        words = isinstance(pipe, FlowPipeline)
        given = {"prompt": [NAMES[label] for label in chosen]} if words else {"class_labels": chosen}
        generators = [torch.Generator().manual_seed(seed + start + number) for number in range(len(chosen))]
        result = pipe(**given, generator=generators, num_inference_steps=steps, output_type="latent")
        drawn.append(result.images.float().cpu())
    return torch.cat(drawn)


def figures(pipe: Any, held_out: LabelledImages, samples: int) -> tuple[dict[str, float], Tensor]:
    """Return label agreement and Fréchet distances of two sets of samples, and the first set."""
    classifier = load_classifier()
    labels = torch.arange(samples) % len(NAMES)
    sets = [sample(pipe, labels, seed) for seed in (0, 1_000_000)]
    features = [judge(classifier, images)[0].numpy() for images in (*sets, held_out.images)]
    found = {
        "agreement": agreement(classifier, sets[0], labels),
        "agreement of another seed": agreement(classifier, sets[1], labels),
        "Fréchet distance to the test images": frechet_distance(features[0], features[2]),
        "Fréchet distance of two seeds": frechet_distance(features[0], features[1]),
    }
    return found, sets[0]


def sheet(images: Tensor, path: Path, rows: int = 5) -> None:
    """Write ``rows`` rows of ten images (n, 1, 28, 28) in [-1, 1], a column for each class, as a PNG."""
    from matplotlib import pyplot

    chosen = (images[: 10 * rows, 0].clamp(-1, 1) + 1) / 2
    tiled = chosen.reshape(rows, 10, 28, 28).permute(0, 2, 1, 3).reshape(28 * rows, 280)
    pyplot.imsave(path, tiled.numpy(), cmap="gray")


def main(
    samples: Annotated[int, typer.Option(min=50, help="In each of two sets.")] = 1000,
    data: Annotated[Path, typer.Option(help="Folder with the four .gz files of Fashion-MNIST.")] = FOLDER,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="PNG file: five rows of each model, one below the other.")] = None,
) -> None:
    """Draw two sets of samples from each model, and print what the judge finds in them."""
    _, held_out = load_split(data)
    table = Table("figure", *MODELS)
    rows: dict[str, list[str]] = {}
    shown: list[Tensor] = []
    for load in MODELS.values():
        pipe = load().to(device)
        pipe.set_progress_bar_config(disable=True)
        found, images = figures(pipe, held_out, samples)
        shown.append(images[:50])
        for title, value in found.items():
            rows.setdefault(title, []).append(f"{value:.1%}" if "agreement" in title else f"{value:.2f}")
    for title, values in rows.items():
        table.add_row(title, *values)
    if out is not None:
        sheet(torch.cat(shown), out, rows=10)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
