"""Sensitivities of a model whose outputs are known functions of the noise level: what any schedule would measure."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from planner_tables import make_sensitivity

from soda_compile.plans.actions import PRUNE_RATES
from soda_compile.plans.noise_schedule import NoiseSchedule
from soda_compile.plans.operators import OPERATORS
from soda_compile.plans.sensitivity import METRICS, Sensitivity

REGIONS = 2


def outputs(levels: np.ndarray) -> np.ndarray:
    """Six features of each region at each level, [levels, regions, 6]: waves of all lengths down to half the range."""
    waves = np.arange(1, 7)
    return np.stack([np.sin(1.1 * waves * levels[:, None] + region) / waves for region in range(REGIONS)], axis=1)


def predicted_error(levels: np.ndarray, step: int, region: int, ages: Sequence[int], weights: Sequence[float]) -> float:
    """Relative error of a prediction from the outputs that many steps ago."""
    values = outputs(levels)[:, region]
    prediction = sum(weight * values[step - age] for weight, age in zip(weights, ages, strict=True))
    return float(np.linalg.norm(prediction - values[step]) / np.linalg.norm(values[step]))


def entry(levels: np.ndarray, operator: Any, step: int, region: int, age: int, spacing: int) -> float:
    """What is measured of an operator; NaN where a kept value would lie before the first step."""
    ages = operator.ages(age, spacing)
    if step < ages[-1]:
        return np.nan
    return predicted_error(levels, step, region, ages, operator.coefficients([-each for each in ages], 0))


def level_sensitivity(
    levels: Sequence[float], width: int = 6, scores: tuple[str, ...] = (), **info: Any
) -> Sensitivity:
    """Measure by brute force, at these noise levels; a pruned region has its rate's share of the error of reuse."""
    steps, at = len(levels), np.array(levels)
    base = make_sensitivity(steps=steps, regions=REGIONS, width=width, scores=scores)
    mean = {}
    for operator in OPERATORS:
        table = np.full((steps, REGIONS, *operator.shape(width)), np.nan)
        for where in np.ndindex(table.shape):
            step, region, age, *spacing = where
            table[where] = entry(at, operator, step, region, age + 1, spacing[0] + 1 if spacing else 1)
        for metric in METRICS:  # of errors that small, 1 - cos is about half the square
            mean[f"{metric}.{operator.name}"] = table**2 / 2 if metric == "cosine" else table
    for score in scores:
        for metric in METRICS:
            mean[f"{metric}.prune.{score}"] = mean[f"{metric}.reuse"][..., None] * np.array(PRUNE_RATES)
    mean = {key: table.astype(np.float32) for key, table in mean.items()}
    variance = {key: table**2 / 4 for key, table in mean.items()}
    known = {"noise_levels": tuple(levels), "timesteps": tuple(1000 * at), "scheduler": "Measured"}
    weights = -np.diff(np.append(at, 0.0))  # a step weighs its length
    return replace(base, info=replace(base.info, **known | info), mean=mean, variance=variance, step_weights=weights)


def schedule(levels: Sequence[float], **fields: Any) -> NoiseSchedule:
    """The schedule of other levels, of the same flow."""
    return NoiseSchedule(tuple(levels), tuple(1000 * np.array(levels)), "Wanted", {}, "d2", **fields)
