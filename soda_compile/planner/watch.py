"""The region of a plan that is worth watching, and what its forecasts at anchors are expected to miss."""

import math
from collections.abc import Mapping, Sequence

from soda_compile.errors import SensitivityError
from soda_compile.plans.operators import OPERATORS
from soda_compile.plans.plan import Plan
from soda_compile.plans.sensitivity import Metric, Sensitivity
from soda_compile.plans.watched_region import WatchedRegion, forecasts_at_anchors


def watched_region(sensitivity: Sensitivity, plan: Plan) -> WatchedRegion | None:
    """Return the region whose forecasts at anchors miss most of the residual stream, and by how much of themselves.

    Expected is the mean error of the calibration for a value of that age in a history of that spacing, as everywhere in
    planning; anchors further apart than was measured are left out.

    Args:
        sensitivity: Measured errors.
        plan: A plan made of them.

    Returns:
        The region; None where no forecast at an anchor was measured, as in a plan that computes everything.
    """
    best: tuple[float, WatchedRegion] | None = None
    for region, row in zip(plan.regions, plan.actions, strict=True):
        sources = forecasts_at_anchors(row, plan.anchors)
        errors = _errors(sensitivity, "relative", region, sources)
        if not errors:
            continue
        weight = sum(_errors(sensitivity, "residual", region, sources).values())
        if best is None or weight > best[0]:  # the first of equals
            best = weight, WatchedRegion(region, tuple(errors.items()))
    return best[1] if best is not None else None


def _errors(
    sensitivity: Sensitivity, metric: Metric, region: str, sources: Mapping[int, Sequence[int]]
) -> dict[int, float]:
    """Return the mean errors under a metric by step, those that were measured."""
    found = {}
    for step, read in sources.items():
        operator = OPERATORS[len(read) - 1].name
        spacing = read[0] - read[1] if len(read) > 1 else 1
        try:
            error = sensitivity.error(metric, operator, step, region, step - read[0], spacing)
        except SensitivityError:  # this operator was not measured
            return {}
        if math.isfinite(error):
            found[step] = error
    return found
