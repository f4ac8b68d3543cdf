"""The 1797 handwritten 8x8 digits that ship with scikit-learn, and their one fixed split."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

HELD_OUT = 360
SPLIT_SEED = 0


@dataclass(frozen=True)
class LabelledImages:
    """Images with their labels.

    Attributes:
        images: float32 of shape (n, 1, size, size), in [-1, 1].
        labels: int64 of shape (n,), in 0..9.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "LabelledImages":
        """Return the same data on a device."""
        return LabelledImages(self.images.to(device), self.labels.to(device))


def load_split() -> tuple[LabelledImages, LabelledImages]:
    """Return the training split (1437 digits) and the held-out split (360 digits), the same on every machine.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the real digits ship with scikit-learn: pip install 'soda-compile[demo]'") from error
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 8 - 1  # stored as 0..16
    targets = torch.from_numpy(labels).long()
    order = torch.from_numpy(np.random.RandomState(SPLIT_SEED).permutation(len(targets)))
    held_out, train = order[:HELD_OUT], order[HELD_OUT:]
    return LabelledImages(images[train], targets[train]), LabelledImages(images[held_out], targets[held_out])
