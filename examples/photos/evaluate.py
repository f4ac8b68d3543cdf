"""Judge the trained model: ``python -m examples.photos.evaluate``."""
# mypy: allow-untyped-calls

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from examples.photos.data import Photographs, load_photographs
from examples.photos.judge import class_agreement, features, frechet_distance
from examples.photos.pipeline import WEIGHTS, load
from soda_compile.digits.evaluate import sample
from soda_compile.storage.files import write_atomic


def blurred(images: Tensor, factor: int) -> Tensor:
    """Images (n, 3, h, w) shrunk by a factor and enlarged again."""
    shrunk = functional.avg_pool2d(images, factor)
    return functional.interpolate(shrunk, scale_factor=float(factor), mode="bilinear", align_corners=False)


def coloured_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Independent pixels with the mean colour and the contrast of each image (n, 3, h, w)."""
    noise = torch.randn(images.shape, generator=generator)
    return images.mean((2, 3), keepdim=True) + images.std((2, 3), keepdim=True) * noise


def report(photographs: Photographs, first: Tensor, second: Tensor) -> dict[str, float]:
    """Compare two sets of samples, labels 0..9 in turn, with real crops and with each other.

    Args:
        photographs: the real thing.
        first: samples (n, 3, 64, 64) in [-1, 1].
        second: the same of another seed.

    Returns:
        A figure per name, in the order they should be read.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(len(first)) % len(photographs.scaled)
    real, others = (photographs.crops(labels, generator) for _ in range(2))
    reference = features(real).numpy()

    def distance(images: Tensor, to: Tensor | None = None) -> float:
        return frechet_distance(features(images).numpy(), reference if to is None else features(to).numpy())

    return {
        "class agreement, samples": class_agreement(first, labels, photographs),
        "class agreement, samples of another seed": class_agreement(second, labels, photographs),
        "class agreement, real crops": class_agreement(others, labels, photographs),
        "Fréchet distance, samples to real crops": distance(first),
        "Fréchet distance, samples of another seed to real crops": distance(second),
        "Fréchet distance, two seeds (noise floor)": distance(first, second),
        "Fréchet distance, other real crops to real crops": distance(others),
        "Fréchet distance, real crops blurred by 2 to real crops": distance(blurred(others, 2)),
        "Fréchet distance, real crops blurred by 4 to real crops": distance(blurred(others, 4)),
        "Fréchet distance, noise in the colours of real crops": distance(coloured_noise(others, generator)),
    }


def picture(photographs: Photographs, samples: Tensor, rows: int, path: Path) -> None:
    """Write two rows of real crops and below them rows of samples, a class per column, as a PNG of 256 colours."""
    from PIL import Image

    classes = len(photographs.scaled)
    real = photographs.crops(torch.arange(2 * classes) % classes, torch.Generator().manual_seed(1))
    tiles = torch.cat([real, samples[: rows * classes]])
    sheet = tiles.unflatten(0, (-1, classes)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    pixels = ((sheet / 2 + 0.5).clamp(0, 1) * 255).round().byte().numpy()
    Image.fromarray(pixels).quantize(256).save(path, optimize=True)


def main(
    samples: Annotated[int, typer.Option(min=20, help="Samples per seed.")] = 200,
    steps: Annotated[int, typer.Option(min=1, help="Sampler steps.")] = 50,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance.")] = 1.5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    out: Annotated[Path | None, typer.Option(help="JSON file to write the figures to.")] = None,
    weights: Annotated[Path, typer.Option(help="Folder of the weights to judge.")] = WEIGHTS,
    image: Annotated[Path | None, typer.Option(help="PNG file for a sheet of samples.")] = None,
) -> None:
    """Generate two sets of samples and print how good and how far apart they are."""
    torch.set_num_threads(threads)
    pipeline, photographs = load(folder=weights), load_photographs()
    first, second = (sample(pipeline, samples, seed, steps, guidance, batch=20).images for seed in (0, 1))
    figures = report(photographs, first, second)
    table = Table("figure", "value", title=f"{samples} samples, DDIM, {steps} steps, guidance {guidance}")
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)
    if image is not None:
        picture(photographs, first, 4, image)
    if out is not None:
        settings = {"samples": samples, "seeds": [0, 1], "steps": steps, "guidance": guidance}
        write_atomic(out, json.dumps({**settings, "torch": torch.__version__, "figures": figures}, indent=1).encode())


if __name__ == "__main__":
    typer.run(main)
