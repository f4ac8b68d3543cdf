"""The judge of generated crops: the Fréchet distance in a fixed, untrained feature space."""
# mypy: allow-untyped-calls

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from examples.photos.data import Photographs
from soda_compile.digits.classifier import frechet_distance

__all__ = ["class_agreement", "features", "frechet_distance"]

FILTERS = 16
SCALES = 3
FEATURES = FILTERS * SCALES + 12


def features(images: Tensor) -> Tensor:
    """Texture by random filters, and colours: nothing here is trained, so the distance favours no model.

    At each of three scales (the image, and halved once and twice): the log of the mean magnitude of the response to
    16 random filters of 5x5 pixels without a mean. And the mean colour of each quarter of the image.

    Args:
        images: float32 of shape (n, 3, h, w), in [-1, 1].

    Returns:
        float32 of shape (n, 60).
    """
    filters = _filters().to(images)
    columns = []
    for scale in range(SCALES):
        shrunk = functional.avg_pool2d(images, 2**scale) if scale else images
        columns.append((functional.conv2d(shrunk, filters).abs().mean((2, 3)) + 1e-2).log())
    columns.append(functional.adaptive_avg_pool2d(images, 2).flatten(1))
    return torch.cat(columns, dim=1)


def class_agreement(images: Tensor, labels: Tensor, photographs: Photographs) -> float:
    """The fraction of images whose features lie nearest to the mean of real crops of their own class.

    Distances are counted in standard deviations of each feature over real crops of all classes.

    Args:
        images: float32 of shape (n, 3, 64, 64), in [-1, 1].
        labels: int64 of shape (n,).
        photographs: where the real crops come from; 100 are cut of each class, always the same.
    """
    classes = len(photographs.scaled)
    real = photographs.crops(torch.arange(classes).repeat_interleave(100), torch.Generator().manual_seed(1234))
    reference = features(real)
    spread = reference.std(0)
    means = reference.unflatten(0, (classes, 100)).mean(1) / spread
    return float((torch.cdist(features(images) / spread, means).argmin(1) == labels).float().mean())


def _filters() -> Tensor:
    """Random filters [16, 3, 5, 5] of unit norm and no mean, the same on every machine."""
    drawn = np.random.RandomState(0).randn(FILTERS, 3, 5, 5)
    drawn -= drawn.mean((2, 3), keepdims=True)
    drawn /= np.sqrt((drawn**2).sum((1, 2, 3), keepdims=True))
    return torch.from_numpy(drawn).float()
