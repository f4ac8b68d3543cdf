"""All errors of one region at one step from Gram matrices over its past values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from soda_compile.plans.operators import OPERATORS, Operator

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ErrorEntries:
    """Which predictions are scored: each is a linear combination of past values, with weights that sum to 1.

    Attributes:
        max_interval: W. Reuse has W entries, each order of forecast W * W: index [n - 1, N - 1] for a value that is
            n steps old in a history of spacing N.
    """

    max_interval: int

    @property
    def lags(self) -> int:
        """How far back values are kept, bounded for memory; entries that reach further stay undefined."""
        return 2 * self.max_interval

    @cached_property
    def weights(self) -> Floats:
        """float64 [entries, lags]: weight of the value that is (column + 1) steps old; NaN rows are beyond reach."""
        width = self.max_interval
        rows = []
        for operator in OPERATORS:
            for age in range(1, width + 1):
                for spacing in range(1, operator.spacings(width) + 1):
                    rows.append(self._row(operator, operator.ages(age, spacing)))
        return np.stack(rows)

    def _row(self, operator: Operator, ages: Sequence[int]) -> Floats:
        row = np.zeros(self.lags)
        if ages[-1] > self.lags:
            return np.full(self.lags, np.nan)
        row[[value - 1 for value in ages]] = operator.coefficients([-value for value in ages], 0)
        return row

    @cached_property
    def reach(self) -> npt.NDArray[np.int64]:
        """int64 [entries]: the oldest value that each entry reads, in steps; beyond ``lags`` where undefined."""
        used = np.nan_to_num(self.weights, nan=1.0) != 0
        oldest: npt.NDArray[np.int64] = self.lags - np.argmax(used[:, ::-1], axis=1)
        oldest[np.isnan(self.weights).any(axis=1)] = self.lags + 1
        return oldest

    def split(self, values: Floats) -> dict[str, Floats]:
        """Entries in the last axis as the operators' tables: reuse [..., W], forecasts [..., W, W]."""
        shapes = [operator.shape(self.max_interval) for operator in OPERATORS]
        parts = np.split(values, np.cumsum([math.prod(shape) for shape in shapes])[:-1], axis=-1)
        return {
            operator.name: part.reshape(*values.shape[:-1], *shape)
            for operator, part, shape in zip(OPERATORS, parts, shapes, strict=True)
        }


def difference_gram(
    present: torch.Tensor, past: torch.Tensor, weight: torch.Tensor | None = None
) -> tuple[Floats, Floats, Floats]:
    """Inner products of the changes since each past step.

    Changes instead of values, because small changes would drown in the rounding of large inner products.

    Args:
        present: [rows, features].
        past: [lags, rows, features], newest first.
        weight: Non-negative weights of the features, broadcastable to ``present``, or None for ones.

    Returns:
        float64 arrays: squared norm of the present value [rows], its products with the changes [rows, lags], and
        the Gram matrix of the changes [rows, lags, lags].
    """
    wide = present.float()
    changes = (past.float() - wide).transpose(0, 1)  # [rows, lags, features]
    weighted = changes if weight is None else changes * weight.unsqueeze(-2)
    base = wide if weight is None else wide * weight
    # Forecasts cancel these products against each other, hence float64.
    gram = torch.bmm(weighted.double(), changes.transpose(1, 2).double())
    cross = torch.einsum("rf,rlf->rl", base, changes)
    square = (base * wide).sum(-1)
    return square.double().cpu().numpy(), cross.double().cpu().numpy(), gram.double().cpu().numpy()


def squared_errors(entries: ErrorEntries, gram: Floats, available: int) -> Floats:
    """Squared norm of (prediction - present) for all entries that reach no further back than ``available`` steps.

    Args:
        entries: What to score.
        gram: float64 [rows, lags, lags] of the changes, lags = available.
        available: Past steps at hand.

    Returns:
        float64 [rows, entries]; NaN for the others.
    """
    result = np.full((len(gram), len(entries.weights)), np.nan)
    usable = entries.reach <= available
    weights = entries.weights[usable, :available]
    result[:, usable] = np.maximum(((weights @ gram) * weights).sum(-1), 0.0)
    return result


def change_products(entries: ErrorEntries, cross: Floats, available: int) -> Floats:
    """Inner products of the present value with (prediction - present), for the entries of ``squared_errors``.

    Args:
        entries: What to score.
        cross: float64 [rows, lags], products of the present value with the changes.
        available: Past steps at hand.

    Returns:
        float64 [rows, entries]; NaN for the others.
    """
    result = np.full((len(cross), len(entries.weights)), np.nan)
    usable = entries.reach <= available
    result[:, usable] = cross @ entries.weights[usable, :available].T
    return result


def cosine_errors(square: Floats, product: Floats, error: Floats) -> Floats:
    """1 - cos(prediction, present), the paper's error (arXiv 2603.07057), from inner products.

    Args:
        square: float64 [rows], squared norm of the present value.
        product: float64 [rows, entries], products of the present value with (prediction - present).
        error: float64 [rows, entries], squared norm of (prediction - present).

    Returns:
        float64 [rows, entries]; NaN where ``error`` is.
    """
    length = np.sqrt(square)[:, None]
    predicted = np.sqrt(np.maximum(square[:, None] + 2 * product + error, 0.0))
    # 1 - x.y / |x||y| = (|x - y|^2 - (|x| - |y|)^2) / 2|x||y|, without the cancellation in 1 - cos.
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = (error - (length - predicted) ** 2) / (2 * length * predicted)
    known = np.clip(np.nan_to_num(cosine, nan=0.0, posinf=1.0), 0.0, 2.0)
    return np.where(np.isnan(error), np.nan, known)
