"""The judge of generated digits: a small CNN and the Fréchet distance in its feature space."""

from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "weights" / "classifier.safetensors"


C = TypeVar("C", bound="Classifier")


class Classifier(nn.Module):
    """A judge of images: a trunk to features, and a head from these to ten logits."""

    trunk: nn.Sequential
    head: nn.Module

    def features(self, images: Tensor) -> Tensor:
        """Return float32 features of shape (n, width) for images of shape (n, 1, height, width) in [-1, 1]."""
        features: Tensor = self.trunk(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return float32 logits of shape (n, 10) for images of shape (n, 1, height, width) in [-1, 1]."""
        logits: Tensor = self.head(self.features(images))
        return logits


class DigitClassifier(Classifier):
    """A CNN from one 8x8 digit to ten logits, by way of 64 features."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, 10)


def load_classifier(path: Path = WEIGHTS) -> DigitClassifier:
    """Load the trained classifier in float32, ready to judge.

    Raises:
        FileNotFoundError: if there are no weights at ``path``.
    """
    return with_weights(DigitClassifier(), path, "python -m soda_compile.digits.train")


def with_weights(model: C, path: Path, training: str) -> C:
    """Give a classifier its trained weights in float32 and make it ready to judge.

    Args:
        model: The classifier.
        path: Its weights.
        training: the command that makes them.

    Raises:
        FileNotFoundError: if there are no weights at ``path``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no classifier weights at {path}: make them with {training}")
    model.load_state_dict(load_file(path))  # copying into float32 parameters casts the stored float16
    return model.eval().requires_grad_(False)


def accuracy(classifier: DigitClassifier, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of images (n, 1, 8, 8) in [-1, 1] that the classifier gives their label (n,)."""
    with torch.no_grad():
        return float((classifier(images).argmax(1) == labels).float().mean())


def frechet_distance(features_a: npt.ArrayLike, features_b: npt.ArrayLike) -> float:
    """Return the squared Fréchet distance between Gaussians fitted to two sets of features.

    |mu_a - mu_b|^2 + tr(A) + tr(B) - 2 tr((AB)^(1/2)), computed in float64. The last trace is taken from the
    eigenvalues of A^(1/2) B A^(1/2), which is symmetric, so rank-deficient covariances do no harm.

    Args:
        features_a: shape (n, d) with n >= 2.
        features_b: shape (m, d) with m >= 2.

    Raises:
        ValueError: if the shapes do not fit.
    """
    a, b = np.asarray(features_a, dtype=np.float64), np.asarray(features_b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"expected features of shape (n, d) and (m, d) with n, m >= 2, got {a.shape} and {b.shape}")
    cov_a, cov_b = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    shift = a.mean(0) - b.mean(0)
    return max(0.0, float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))
