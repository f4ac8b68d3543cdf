"""How close samples are to the original's, by several measures."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.leaderboard.statistics import bootstrap_deviation
from benchmarks.leaderboard.subject import ELSEWHERE, Subject
from benchmarks.leaderboard.trial import Trial, original, relative, run
from soda_compile.digits.classifier import frechet_distance

WORST = 0.05


@dataclass(frozen=True, eq=False)
class Reference:
    """The original's samples.

    Attributes:
        latents: Of the scored seeds.
        images: Of these, in [0, 1].
        flops: Of one sample.
    """

    latents: Tensor
    images: Tensor
    flops: float


@lru_cache(maxsize=4)
def reference(subject: Subject, first: int, samples: int) -> Reference:
    """Run the original on seeds from ``first`` on."""
    trial = run(subject, original(subject), range(first, first + samples))
    return Reference(trial.latents, subject.decode(subject.pipe, trial.latents), trial.cost)


def scores(subject: Subject, wanted: Reference, trial: Trial, samples: int) -> dict[str, Any]:
    """Measures of the first samples; lists have a value for each of them."""
    images, latents = subject.decode(subject.pipe, trial.latents[:samples]), trial.latents[:samples]
    errors = relative(latents, wanted.latents[:samples])
    targets = wanted.images[:samples]
    squares = (images - targets).flatten(1).double().square().mean(1).clamp_min(1e-12).cpu()
    with torch.no_grad():
        agreement = (subject.predict(images) == subject.predict(targets)).float().mean()
    worst = errors.sort(descending=True).values[: max(1, round(WORST * len(errors)))]
    return {
        "relative_l2": [round(float(each), 7) for each in errors],
        "relative_l2_mean": float(errors.mean()),
        "relative_l2_worst": float(worst.mean()),
        "psnr": float((-10 * squares.log10()).mean()),
        "ssim": float(ssim(images, targets).mean()),
        "label_agreement": float(agreement),
    }


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity of each image in [0, 1], by torchmetrics; small images have a small window."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    small = min(images.shape[-2:]) < 32
    options: dict[str, Any] = {"gaussian_kernel": False, "kernel_size": 3} if small else {}
    found: Any = structural_similarity_index_measure(images, targets, data_range=1.0, reduction="none", **options)
    return torch.as_tensor(found)


def frechet(subject: Subject, trial: Trial, samples: int) -> dict[str, float]:
    """Fréchet distances of samples to the original's of other seeds, and to real images; with the original's own.

    The original's own distance to other seeds is the floor; its deviation is what another draw of seeds would change.
    """
    own = _features(subject, samples)
    seen = _seen(subject, subject.decode(subject.pipe, trial.latents))
    return {
        "to_original": frechet_distance(seen, own["elsewhere"]),
        "to_real": frechet_distance(seen, own["real"]),
        **_frechet_of_original(subject, samples),
        "samples": samples,
    }


@lru_cache(maxsize=4)
def _frechet_of_original(subject: Subject, samples: int) -> dict[str, float]:
    """The same distances of the original's own samples, for all rows of a model."""
    own = _features(subject, samples)
    return {
        "to_original_floor": frechet_distance(own["original"], own["elsewhere"]),
        "to_original_floor_deviation": bootstrap_deviation(
            frechet_distance, own["original"], own["elsewhere"], subject.labels
        ),
        "to_real_original": frechet_distance(own["original"], own["real"]),
    }


@lru_cache(maxsize=4)
def _features(subject: Subject, samples: int) -> dict[str, np.ndarray[Any, Any]]:
    return {
        "original": _seen(subject, reference(subject, 0, samples).images),
        "elsewhere": _seen(subject, reference(subject, ELSEWHERE, samples).images),
        "real": _seen(subject, subject.real(samples)),
    }


def _seen(subject: Subject, images: Tensor) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        found: np.ndarray[Any, Any] = subject.features(images).float().cpu().numpy()
    return found
