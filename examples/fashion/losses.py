"""What the flow matching model and the classifier minimise; the noise loss of the digits serves the third model."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from soda_compile.digits.train import mixed_precision, spread_evenly, with_null

TIMESTEPS = 1000
SHIFT = 2
"""Largest distance in pixels by which the classifier's images are moved."""


def logit_normal(size: int, device: torch.device) -> Tensor:
    """Return `size` noise levels in (0, 1), logit-normal and spread evenly (arXiv 2403.03206, section 3.1)."""
    uniform = spread_evenly(size, device).clamp(1e-6, 1 - 1e-6)
    level: Tensor = torch.special.ndtri(uniform).sigmoid()
    return level


def velocity_loss(model: Callable[..., Tensor], images: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean squared error of the predicted velocity, noise minus image, on the line between the two.

    Args:
        model: called as ``model(noisy, timesteps, tokens)``.
        images: of shape (n, 1, 28, 28), in [-1, 1].
        tokens: of the texts, of shape (n, length).
    """
    level = logit_normal(len(images), images.device)
    noise = torch.randn_like(images)
    noisy = torch.lerp(images, noise, level[:, None, None, None])
    with mixed_precision(images.device):
        predicted = model(noisy, level * TIMESTEPS, tokens)
    return functional.mse_loss(predicted.float(), noise - images)


def text_velocity_loss(texts: Tensor) -> Callable[[Callable[..., Tensor], Tensor, Tensor], Tensor]:
    """Return the velocity loss over labels.

    Args:
        texts: tokens of each label's text, and last those of the empty text, which some of the images are given.
    """

    def loss(model: Callable[..., Tensor], images: Tensor, labels: Tensor) -> Tensor:
        return velocity_loss(model, images, texts[with_null(labels)])

    return loss


def classifier_loss(model: Callable[..., Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy on images that are moved a little and have some noise, as a sampler may leave some."""
    padded = functional.pad(images, [SHIFT] * 4, value=-1.0)
    top, left = torch.randint(2 * SHIFT + 1, (2,)).tolist()  # on the CPU; the same for a batch
    height, width = images.shape[2:]
    moved = padded[:, :, top : top + height, left : left + width]
    strength = 0.1 * torch.rand(len(images), 1, 1, 1, device=images.device)
    with mixed_precision(images.device):
        logits = model(moved + strength * torch.randn_like(images))
    return functional.cross_entropy(logits.float(), labels, label_smoothing=0.05)
