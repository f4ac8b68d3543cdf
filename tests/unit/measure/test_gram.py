"""Errors from Gram matrices against loops over every prediction, in float64."""

from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from soda_compile.measure.gram import ErrorEntries, difference_gram, entry_products
from soda_compile.measure.scoring import errors_of

WIDTH, ROWS, FEATURES = 3, 2, 17
ENTRIES = ErrorEntries(WIDTH)
Array = NDArray[np.float64]


def history(seed: int = 0, drift: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """A present value [rows, features] and the values before it [lags, rows, features], newest first."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(ROWS, FEATURES, generator=generator)
    walk = torch.randn(ENTRIES.lags, ROWS, FEATURES, generator=generator).mul(drift).cumsum(0)
    return start, start + walk


def predict(past: Array, operator: str, age: int, spacing: int) -> Array:
    """What an operator says from the values that are age, age + spacing, ... steps old, written as differences."""
    newest = past[age - 1]
    if operator == "reuse":
        return newest
    older = past[age + spacing - 1]
    slope = (newest - older) / spacing
    if operator == "forecast1":
        return newest + age * slope
    oldest = past[age + 2 * spacing - 1]
    bend = ((newest - older) - (older - oldest)) / spacing**2
    parabola = newest + age * slope + age * (age + spacing) / 2 * bend
    if operator == "forecast2":
        return parabola
    last = past[age + 3 * spacing - 1]
    twist = (bend - ((older - oldest) - (oldest - last)) / spacing**2) / spacing
    return parabola + age * (age + spacing) * (age + 2 * spacing) / 6 * twist


def reach(operator: str, age: int, spacing: int) -> int:
    return age + {"reuse": 0, "forecast1": 1, "forecast2": 2, "forecast3": 3}[operator] * spacing


def tables(present: torch.Tensor, past: torch.Tensor, weight: torch.Tensor | None = None) -> dict[str, Array]:
    """All tables [rows, ...] under "squared.reuse", "cosine.forecast1" and so on."""
    square, cross, gram = difference_gram(present, past, weight)
    error, product = entry_products(ENTRIES, cross, gram)
    cosine = errors_of(np.stack([error, product, error]), square, square)[:, 0]
    return {
        f"{metric}.{operator}": table
        for metric, values in (("squared", error), ("cosine", cosine))
        for operator, table in ENTRIES.split(values).items()
    }


def check(available: int, weight: torch.Tensor | None = None) -> None:
    present, past = history()
    past = past[:available]
    found = tables(present, past, weight)
    now, before = present.double().numpy(), past.double().numpy()
    factor = np.ones((ROWS, FEATURES)) if weight is None else np.broadcast_to(weight.double().numpy(), now.shape)
    for operator, age, spacing in product(("reuse", "forecast1", "forecast2", "forecast3"), *[range(1, WIDTH + 1)] * 2):
        index = (slice(None), age - 1) if operator == "reuse" else (slice(None), age - 1, spacing - 1)
        squared, cosine = (found[f"{metric}.{operator}"][index] for metric in ("squared", "cosine"))
        if reach(operator, age, spacing) > min(available, ENTRIES.lags):
            assert np.isnan(squared).all(), (operator, age, spacing)
            assert np.isnan(cosine).all(), (operator, age, spacing)
            continue
        guess = predict(before, operator, age, spacing)
        np.testing.assert_allclose(squared, (factor * (guess - now) ** 2).sum(1), rtol=1e-4)
        inner = (factor * guess * now).sum(1)
        lengths = np.sqrt((factor * guess**2).sum(1) * (factor * now**2).sum(1))
        np.testing.assert_allclose(cosine, 1 - inner / lengths, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("available", range(1, ENTRIES.lags + 1))
def test_every_entry_is_that_of_a_loop_over_predictions(available: int):
    check(available)


@pytest.mark.parametrize("shape", [(ROWS, FEATURES), (1, FEATURES)])
def test_weights_of_the_features(shape: tuple[int, ...]):
    weight = torch.rand(shape, generator=torch.Generator().manual_seed(3)) + 0.1
    check(ENTRIES.lags, weight)


def test_the_weights_of_every_prediction_sum_to_one():
    known = ~np.isnan(ENTRIES.weights).any(axis=1)
    np.testing.assert_allclose(ENTRIES.weights[known].sum(1), 1, rtol=1e-12)
    assert ENTRIES.weights.shape == (WIDTH + 3 * WIDTH**2, 2 * WIDTH)


def test_small_changes_of_large_values_are_not_lost_in_rounding():
    present = torch.full((1, 64), 1000.0)
    past = present + torch.linspace(-1e-2, 1e-2, 64).expand(ENTRIES.lags, 1, 64)
    found = tables(present, past)
    step = (past[0].double() - present.double()).square().sum().item()
    np.testing.assert_allclose(found["squared.reuse"], step, rtol=1e-3)
    now, guess = present.double().flatten(), past[0].double().flatten()
    truth = 1 - float(now @ guess / now.norm() / guess.norm())
    np.testing.assert_allclose(found["cosine.reuse"], truth, rtol=0.05)


def test_a_line_is_forecast_without_error():
    present, _ = history()
    slope = torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(5))
    past = torch.stack([present - age * slope for age in range(1, ENTRIES.lags + 1)])
    found = tables(present, past)
    size = slope.square().sum(1).double().numpy()
    np.testing.assert_allclose(found["squared.reuse"], size[:, None] * np.arange(1, WIDTH + 1) ** 2, rtol=1e-4)
    # Inner products are summed in float32, so errors below a few hundredths of one step's change are lost.
    assert np.nanmax(found["squared.forecast1"]) < 1e-4 * size.min()
    assert np.nanmax(found["squared.forecast2"]) < 1e-2 * size.min()


def test_a_value_that_does_not_change_has_no_error():
    present, _ = history()
    found = tables(present, present.expand(ENTRIES.lags, ROWS, FEATURES))
    assert all(np.nanmax(table) == 0 for table in found.values())


def test_half_precision_values_are_compared_in_float32():
    present, past = (value.bfloat16() for value in history())
    wide = tables(present.float(), past.float())
    narrow = tables(present, past)
    for name, table in wide.items():
        np.testing.assert_array_equal(table, narrow[name])
