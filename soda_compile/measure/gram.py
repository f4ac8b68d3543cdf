"""All errors of one region at one step from Gram matrices over its past values."""

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
    """The predictions that are scored: linear combinations of past values, with weights that sum to 1.

    Attributes:
        max_interval: W. Reuse has W entries, each order of forecast W * W: index [n - 1, N - 1] for a value that is
            n steps old in a history of spacing N.
    """

    max_interval: int

    @property
    def lags(self) -> int:
        """Steps for which values are kept, bounded for memory; entries that reach further stay undefined."""
        return 2 * self.max_interval

    @cached_property
    def weights(self) -> Floats:
        """float64 [entries, lags]: weight of the value that is (column + 1) steps old; NaN rows are beyond reach."""
        interval = self.max_interval
        return np.stack(
            [
                self._row(operator, operator.ages(age, spacing))
                for operator in OPERATORS
                for age in range(1, interval + 1)
                for spacing in range(1, operator.spacings(interval) + 1)
            ]
        )

    def _row(self, operator: Operator, ages: Sequence[int]) -> Floats:
        if ages[-1] > self.lags:
            return np.full(self.lags, np.nan)
        row = np.zeros(self.lags)
        row[[age - 1 for age in ages]] = operator.coefficients([-age for age in ages], 0)
        return row

    @cached_property
    def reach(self) -> npt.NDArray[np.int64]:
        """int64 [entries]: the oldest value that each entry reads, in steps; beyond ``lags`` where undefined."""
        used = np.nan_to_num(self.weights, nan=1.0) != 0
        oldest: npt.NDArray[np.int64] = self.lags - np.argmax(used[:, ::-1], axis=1)
        oldest[np.isnan(self.weights).any(axis=1)] = self.lags + 1
        return oldest

    def split(self, values: Floats) -> dict[str, Floats]:
        """Return entries in the last axis as the operators' tables: reuse [..., W], forecasts [..., W, W]."""
        shapes = [operator.shape(self.max_interval) for operator in OPERATORS]
        parts = np.split(values, np.cumsum([math.prod(shape) for shape in shapes])[:-1], axis=-1)
        return {
            operator.name: part.reshape(*values.shape[:-1], *shape)
            for operator, part, shape in zip(OPERATORS, parts, shapes, strict=True)
        }


def difference_gram(
    present: torch.Tensor, past: torch.Tensor, weight: torch.Tensor | None = None
) -> tuple[Floats, Floats, Floats]:
    """Return inner products of the changes since each past step.

    Changes instead of values, because small changes would drown in the rounding of large inner products.

    Args:
        present: [samples, features].
        past: [lags, samples, features], newest first.
        weight: Non-negative weights of the features, broadcastable to ``present``, or None for ones.

    Returns:
        float64 arrays: squared norm of the present value [samples], its products with the changes [samples, lags], and
        the Gram matrix of the changes [samples, lags, lags].
    """
    value = present.float()
    changes = (past.float() - value).transpose(0, 1)  # [samples, lags, features]
    weighted = changes if weight is None else changes * weight.unsqueeze(-2)
    base = value if weight is None else value * weight
    # Forecasts cancel these products against each other, hence float64.
    gram = torch.bmm(weighted.double(), changes.transpose(1, 2).double())
    cross = torch.einsum("rf,rlf->rl", base, changes)
    square = (base * value).sum(-1)
    return square.double().cpu().numpy(), cross.double().cpu().numpy(), gram.double().cpu().numpy()


def entry_products(entries: ErrorEntries, cross: Floats, gram: Floats) -> tuple[Floats, Floats]:
    """Return the squared norm of (prediction - present) and its product with the present value for all entries.

    Args:
        entries: The predictions.
        cross: Products of the present value with the changes, as of ``difference_gram``.
        gram: Gram matrix of the changes.

    Returns:
        Two of float64 [samples, entries]; NaN for entries that reach further back than the changes.
    """
    available = cross.shape[1]
    usable = entries.reach <= available
    weights = entries.weights[usable, :available]
    error, product = np.full((2, len(cross), len(usable)), np.nan)
    error[:, usable] = np.maximum(((weights @ gram) * weights).sum(-1), 0.0)
    product[:, usable] = cross @ weights.T
    return error, product
