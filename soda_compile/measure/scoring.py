"""From inner products of changes to errors under every metric."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from soda_compile.measure.gram import (
    ErrorEntries,
    Floats,
    change_products,
    cosine_errors,
    difference_gram,
    squared_errors,
)
from soda_compile.measure.history import TokenGroup


def prediction_products(entries: ErrorEntries, groups: Sequence[TokenGroup]) -> tuple[Floats, Floats]:
    """Inner products of (prediction - present) for every reuse and forecast of a region.

    Returns:
        float64 [3, rows, entries]: squared norm, product with the present value, squared norm in the residual
        stream; NaN for predictions from values that are not kept. And float64 [rows]: squared norm of the present
        value.
    """
    present = _join([group.present for group in groups], 1)
    past = _join([group.past for group in groups], 2)
    available = len(past)
    square, cross, gram = difference_gram(present, past)
    error = squared_errors(entries, gram, available)
    product = change_products(entries, cross, available)
    weighted = error
    weights = [group.weight for group in groups if group.weight is not None]
    if weights:
        weighted = squared_errors(entries, difference_gram(present, past, _join(weights, 1))[2], available)
    return np.stack([error, product, weighted]), square


def errors_of(products: Floats, square: Floats, residual_square: Floats) -> Floats:
    """Errors under the metrics cosine (the paper's), relative (L2) and residual (gated, against the residual stream).

    Args:
        products: float64 [3, rows, entries], as of ``prediction_products``.
        square: float64 [rows], squared norm of the present value.
        residual_square: float64 [rows], squared norm of the residual stream.

    Returns:
        float64 [rows, metrics, entries].
    """
    error, product, weighted = products
    cosine = cosine_errors(square, product, error)
    relative = np.sqrt(error / np.maximum(square, 1e-30)[:, None])
    residual = np.sqrt(weighted / np.maximum(residual_square, 1e-30)[:, None])
    return np.stack([cosine, relative, residual], axis=1)


def _join(values: Sequence[torch.Tensor], start: int) -> torch.Tensor:
    """The axes from ``start`` on as one, those of all values one after the other."""
    flat = [value.flatten(start) for value in values]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=start)
