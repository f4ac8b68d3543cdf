"""Coefficients of forecasts."""

from collections.abc import Sequence


def lagrange(points: Sequence[int], at: int) -> tuple[float, ...]:
    """Return the weights of the values at ``points`` in the polynomial through them at ``at``; they sum to 1."""
    weights = []
    for point in points:
        weight = 1.0
        for other in points:
            if other != point:
                weight *= (at - other) / (point - other)
        weights.append(weight)
    return tuple(weights)
