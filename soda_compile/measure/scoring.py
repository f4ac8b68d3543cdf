"""From inner products of changes to errors under every metric."""

from collections.abc import Sequence

import numpy as np
import torch

from soda_compile.measure.gram import ErrorEntries, Floats, difference_gram, entry_products
from soda_compile.measure.history import TokenGroup


def prediction_products(entries: ErrorEntries, groups: Sequence[TokenGroup]) -> tuple[Floats, Floats]:
    """Return inner products of (prediction - present) for every reuse and forecast of a region.

    Returns:
        float64 [3, samples, entries]: squared norm, product with the present value, squared norm in the residual
        stream; NaN for predictions from values that are not kept. And float64 [samples]: squared norm of the present
        value.
    """
    present = _join([group.present for group in groups], 1)
    past = _join([group.past for group in groups], 2)
    square, cross, gram = difference_gram(present, past)
    error, product = entry_products(entries, cross, gram)
    weights = [group.weight for group in groups if group.weight is not None]
    if weights:
        gram = difference_gram(present, past, _join(weights, 1))[2]
    weighted = entry_products(entries, cross, gram)[0] if weights else error
    return np.stack([error, product, weighted]), square


def errors_of(products: Floats, square: Floats, residual_square: Floats) -> Floats:
    """Return errors under the metrics cosine (the paper's, arXiv 2603.07057), relative (L2) and residual (gated).

    Args:
        products: float64 [3, samples, entries], as of ``prediction_products``.
        square: float64 [samples], squared norm of the present value.
        residual_square: float64 [samples], squared norm of the residual stream.

    Returns:
        float64 [samples, metrics, entries]; NaN where products are.
    """
    error, product, weighted = products
    relative = np.sqrt(error / np.maximum(square, 1e-30)[:, None])
    residual = np.sqrt(weighted / np.maximum(residual_square, 1e-30)[:, None])
    return np.stack([_cosine(square[:, None], product, error), relative, residual], axis=1)


def _cosine(square: Floats, product: Floats, error: Floats) -> Floats:
    """Return 1 - cos(prediction, present)."""
    length = np.sqrt(square)
    predicted = np.sqrt(np.maximum(square + 2 * product + error, 0.0))
    # 1 - x.y / |x||y| = (|x - y|^2 - (|x| - |y|)^2) / 2|x||y|, without the cancellation in 1 - cos.
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = (error - (length - predicted) ** 2) / (2 * length * predicted)
    bounded = np.clip(np.nan_to_num(cosine, nan=0.0, posinf=1.0), 0.0, 2.0)
    return np.where(np.isnan(error), np.nan, bounded)


def _join(values: Sequence[torch.Tensor], start: int) -> torch.Tensor:
    """Return the axes from ``start`` on as one, those of all values one after the other."""
    flat = [value.flatten(start) for value in values]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=start)
