"""The judge of generated clothes: a small CNN, in whose features Fréchet distances are measured."""

from pathlib import Path

import torch
from torch import Tensor, nn

from soda_compile.digits.classifier import Classifier, with_weights

WEIGHTS = Path(__file__).parent / "weights" / "classifier.safetensors"
FEATURES = 128


class FashionClassifier(Classifier):
    """A CNN from one 28x28 image to ten logits, by way of 128 features."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_convolution(1, 32),
            *_convolution(32, 32),
            nn.MaxPool2d(2),
            *_convolution(32, 64),
            *_convolution(64, 64),
            nn.MaxPool2d(2),
            *_convolution(64, 128),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(128 * 3 * 3, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(FEATURES, 10))


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def load_classifier(path: Path = WEIGHTS) -> FashionClassifier:
    """Load the trained classifier in float32, ready to judge.

    Raises:
        FileNotFoundError: if there are no weights at ``path``.
    """
    return with_weights(FashionClassifier(), path, "python -m examples.fashion.train --model classifier")


@torch.no_grad()
def judge(classifier: FashionClassifier, images: Tensor, batch: int = 500) -> tuple[Tensor, Tensor]:
    """Return the features (n, 128) and classes (n,) that the classifier, wherever it is, gives images; on the CPU.

    Args:
        classifier: in eval mode.
        images: of shape (n, 1, 28, 28), in [-1, 1], on any device.
        batch: how many images go through it at once.
    """
    device = next(classifier.parameters()).device
    features = [classifier.features(part.to(device)) for part in torch.split(images, batch)]
    classes = [classifier.head(part).argmax(1).cpu() for part in features]
    return torch.cat(features).cpu(), torch.cat(classes)


def agreement(classifier: FashionClassifier, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of images (n, 1, 28, 28) in [-1, 1] that the classifier gives their label (n,)."""
    return float((judge(classifier, images)[1] == labels.cpu()).float().mean())
