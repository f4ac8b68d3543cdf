"""Sketches: linear, of about the same products, and exact where there is nothing to leave out."""

import numpy as np
import pytest
import torch

from soda_compile.measure.sketch import NUMBERS, Sketch, sketch_for


def test_short_vectors_stay_as_they_are() -> None:
    vectors = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    np.testing.assert_array_equal(Sketch(8)(vectors), np.pad(vectors.numpy(), ((0, 0), (0, 3))))


def test_sums_are_sketches_of_sums() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4, 1000, generator=draw, dtype=torch.float64)
    sketch = Sketch(32)
    np.testing.assert_allclose(sketch(a) + sketch(b), sketch(a + b), atol=1e-12)
    np.testing.assert_array_equal(sketch(a), Sketch(32)(a))


@pytest.mark.parametrize("samples", [1, 8, 32])
def test_norms_over_all_samples_are_about_kept(samples: int) -> None:
    draw = torch.Generator().manual_seed(0)
    sketch = sketch_for(samples)
    assert sketch.length * samples == NUMBERS
    ratios = []
    for _ in range(20):
        vectors = torch.randn(samples, 5000, generator=draw, dtype=torch.float64)
        ratios.append(float(np.square(sketch(vectors)).sum() / vectors.square().sum()))
    assert np.mean(ratios) == pytest.approx(1, abs=0.06)
    assert np.std(ratios) < 0.13
