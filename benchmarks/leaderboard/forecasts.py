"""What forecasts make of kept values: polynomials in the time since the last computed step, and fitted weights."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Basis = Callable[[float, int], float]
"""From the time since the last computed step and the order to the factor of that difference."""


def taylor(time: float, order: int) -> float:
    """TaylorSeer (arXiv 2503.06923, eq. 5): ``time^order / order!``."""
    return float(time**order / math.factorial(order))


def hermite(contraction: float) -> Basis:
    """HiCache (arXiv 2508.16984): scaled Hermite polynomials ``s^i H_i(s time)`` over ``i!``, the physicists' ones."""

    def basis(time: float, order: int) -> float:
        value = contraction**order * hermite_polynomial(contraction * time, order)
        return float(value / math.factorial(order))

    return basis


def hermite_polynomial(x: float, order: int) -> float:
    """``H_0 = 1``, ``H_1 = 2x``, ``H_{n+1} = 2x H_n - 2n H_{n-1}``."""
    before, value = 0.0, 1.0
    for number in range(order):
        before, value = value, 2 * x * value - 2 * number * before
    return value


def differences(value: Any, before: Sequence[Any], distance: int, most: int) -> list[Any]:
    """Finite differences at a computed step (TaylorSeer, eq. 6), each over the distance to the last computed step.

    Args:
        value: What was computed.
        before: The differences at the last computed step; none at the first.
        distance: Steps since then.
        most: Highest order.
    """
    found = [value]
    for lower in before[:most]:
        found.append((found[-1] - lower) / distance)
    return found


def predicted(factors: Sequence[Any], time: float, basis: Basis) -> Any:
    """The forecast ``time`` steps after the last computed one."""
    total = factors[0] * basis(time, 0)
    for order, factor in enumerate(factors[1:], 1):
        total = total + factor * basis(time, order)
    return total


def fitted_weights(gram: npt.NDArray[np.float64], sources: Sequence[int], step: int, ridge: float) -> tuple[float, ...]:
    """Weights of kept values that come closest to the true one, least squares with a pull to plain reuse.

    Args:
        gram: [T, T] inner products of the true values of all steps, summed over calibration samples.
        sources: Steps of the kept values, newest first.
        step: The step to forecast.
        ridge: Over the mean of the sources' squares.
    """
    chosen = list(sources)
    normal = gram[np.ix_(chosen, chosen)]
    held = ridge * float(np.trace(normal)) / len(chosen) * np.eye(len(chosen))
    reuse = np.eye(len(chosen))[0]
    weights = np.linalg.solve(normal + held, gram[chosen, step] + held @ reuse)
    return tuple(float(weight) for weight in weights)
