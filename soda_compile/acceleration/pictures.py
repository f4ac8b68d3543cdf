"""Pictures as arrays, and how far two are apart."""

import math

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float64]
"""[height, width, 3], from 0 to 1."""


def relative_error(original: Image, other: Image) -> float:
    """Return the norm of the difference / norm of the original."""
    return float(np.linalg.norm(other - original)) / max(float(np.linalg.norm(original)), 1e-12)


def psnr_db(original: Image, other: Image) -> float:
    """Return the peak signal-to-noise ratio over all pixels; infinite where they are equal."""
    return decibels(float(np.mean((other - original) ** 2)))


def decibels(error: float) -> float:
    """Return a mean square error of values from 0 to 1 as a peak signal-to-noise ratio."""
    return -10 * math.log10(error) if error else math.inf


def as_image(picture: object) -> Image:
    """Return a picture of one, three or four channels, a PIL image or an array, as an image.

    Raises:
        ValueError: It is none.
    """
    values = np.asarray(picture)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in (1, 3, 4)):
        raise ValueError(f"it has the shape {values.shape}")
    values = values.astype(np.float64) / (255 if values.dtype == np.uint8 else 1)
    values = values[..., None] if values.ndim == 2 else values
    return np.repeat(values, 3, axis=2) if values.shape[-1] == 1 else values[..., :3]
