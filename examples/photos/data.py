"""Crops of the colour photographs that ship inside scikit-learn and scikit-image."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SIZE = 64
SHORT_SIDES = (80, 120)
"""The photographs are shrunk until their short side has one of these lengths, in pixels, and then cropped."""
PHOTOGRAPHS = (
    ("china", "sklearn.datasets", "images/china.jpg"),
    ("flower", "sklearn.datasets", "images/flower.jpg"),
    ("astronaut", "skimage.data", "astronaut.png"),
    ("cat", "skimage.data", "chelsea.png"),
    ("coffee", "skimage.data", "coffee.png"),
    ("rocket", "skimage.data", "rocket.jpg"),
    ("deep field", "skimage.data", "hubble_deep_field.jpg"),
    ("retina", "skimage.data", "retina.jpg"),
    ("tissue", "skimage.data", "ihc.png"),
    ("motorcycle", "skimage.data", "motorcycle_left.png"),
)
"""Name, package and file of each photograph; a class is an index into this tuple."""


@dataclass(frozen=True)
class Photographs:
    """The photographs at every scale.

    Attributes:
        scaled: scaled[label][scale] is float32 of shape (3, height, width), in [-1, 1].
    """

    scaled: tuple[tuple[Tensor, ...], ...]

    def crops(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Cut one crop per label: random scale, place and left-right flip.

        Args:
            labels: int64 of shape (n,), in 0..9.
            generator: source of the randomness; PyTorch's global one if left out.

        Returns:
            float32 of shape (n, 3, 64, 64), in [-1, 1].
        """

        def below(bound: int) -> int:
            return int(torch.randint(bound, (), generator=generator))

        crops = []
        for label in labels.tolist():
            photograph = self.scaled[label][below(len(SHORT_SIDES))]
            top, left = (below(length - SIZE + 1) for length in photograph.shape[1:])
            crop = photograph[:, top : top + SIZE, left : left + SIZE]
            crops.append(crop.flip(-1) if below(2) else crop)
        return torch.stack(crops)

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield crops (size, 3, 64, 64) and labels (size,) without end, every class equally often in the long run."""
        while True:
            labels = torch.randint(len(self.scaled), (size,), generator=generator)
            yield self.crops(labels, generator), labels


def load_photographs() -> Photographs:
    """Read and shrink the ten photographs.

    Raises:
        ImportError: if scikit-learn, scikit-image or Pillow is not installed.
    """
    try:
        from PIL import Image

        opened: list[Any] = []
        for _, package, file in PHOTOGRAPHS:
            with resources.files(package).joinpath(file).open("rb") as stream:
                opened.append(np.asarray(Image.open(stream).convert("RGB")))
    except ImportError as error:
        raise ImportError(
            "the photographs ship with scikit-learn and scikit-image: pip install 'soda-compile[photos]'"
        ) from error
    return Photographs(tuple(_scales(torch.from_numpy(pixels.copy())) for pixels in opened))


def _scales(pixels: Tensor) -> tuple[Tensor, ...]:
    image = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
    short = min(image.shape[2:])
    sizes = [[round(length * side / short) for length in image.shape[2:]] for side in SHORT_SIDES]
    return tuple(
        functional.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)[0].clamp(-1, 1)
        for size in sizes
    )
