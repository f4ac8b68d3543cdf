"""Pictures of sensitivities: regions by steps, coloured by error, danger zones outlined. Needs matplotlib."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from soda_compile.plans.actions import PRUNE_RATES
from soda_compile.plans.figure_file import new_figure, png_of
from soda_compile.plans.operators import OPERATORS
from soda_compile.plans.plan import Plan
from soda_compile.plans.sensitivity import Sensitivity

Floats = NDArray[np.float64]

INTERVALS = (2, 3, 5, 9)
"""Intervals that are shown, in steps from one computed step to the next, where they were measured."""
DANGER = 0.9
"""Danger zones are where the error is above this quantile of the whole table of an operator."""
RATE = 0.5
"""Share of the tokens that keep their old value, where pruning is shown."""
_LABELS = 48  # region names that have room beside a map
_ORDERS = {operator.name: operator.order for operator in OPERATORS}


def sensitivity_png(sensitivity: Sensitivity, metric: str, operator: str, plan: Plan | None = None) -> bytes:
    """Return a PNG with a map for each interval; see ``draw_maps``."""
    figure = new_figure(13, map_height(sensitivity))
    draw_maps(figure, sensitivity, metric, operator, plan)
    return png_of(figure)


def map_height(sensitivity: Sensitivity) -> float:
    """Return the height of a row of maps, in inches."""
    return min(9.0, 0.16 * len(sensitivity.info.regions)) + 1.4


def draw_maps(figure: Figure, sensitivity: Sensitivity, metric: str, operator: str, plan: Plan | None = None) -> None:
    """Draw the errors of an operator, a map for each interval, at the last step of the interval.

    Args:
        figure: Where to.
        sensitivity: What was measured.
        metric: One of METRICS.
        operator: Name of one of OPERATORS, or one of PRUNE_OPERATORS.
        plan: Marks where its regions compute, if given.

    Raises:
        SensitivityError: The operator was not measured under this metric.
    """
    maps = {length: interval_map(sensitivity, metric, operator, length) for length in intervals(sensitivity)}
    whole = np.concatenate([values[np.isfinite(values) & (values > 0)] for values in maps.values()])
    if not whole.size:
        figure.text(0.5, 0.5, f"no {operator} of these intervals was measured", ha="center")
        return
    norm = LogNorm(max(float(np.quantile(whole, 0.02)), float(whole.max()) * 1e-4), float(whole.max()))
    axes = figure.subplots(1, len(maps), squeeze=False, sharey=True)[0]
    for number, (axis, (length, values)) in enumerate(zip(axes, maps.items(), strict=True)):
        image = axis.imshow(values.T, aspect="auto", cmap="magma_r", norm=norm, interpolation="nearest")
        _outline(axis, np.quantile(whole, DANGER) < values.T)
        if plan is not None:
            _mark_computed(axis, plan)
        axis.set_title(f"computed every {length} steps", fontsize=9, loc="left")
        axis.set_xlabel("step", fontsize=9)
        _name_regions(axis, sensitivity.info.regions, first=number == 0)
    figure.colorbar(image, ax=list(axes), label=f"{metric} error of {operator}", fraction=0.02, pad=0.01)


def intervals(sensitivity: Sensitivity) -> tuple[int, ...]:
    """Return the intervals that can be shown: forecasts are of steps that lie as far apart."""
    longest = min(sensitivity.info.max_interval, sensitivity.info.steps - 1)
    return tuple(length for length in INTERVALS if length <= longest) or (2,)


def interval_map(sensitivity: Sensitivity, metric: str, operator: str, length: int) -> Floats:
    """Return [T, R], the error at each step if it is the last of an interval of this length."""
    table = sensitivity.table(metric, operator).astype(np.float64)[:, :, length - 2]
    if operator not in _ORDERS:
        return np.asarray(table[..., PRUNE_RATES.index(RATE)])
    if not _ORDERS[operator]:
        return np.asarray(table)
    if length > table.shape[-1]:  # no values so far apart were measured
        return np.full(table.shape[:-1], np.nan)
    return np.asarray(table[..., length - 1])


def _outline(axis: Axes, danger: NDArray[np.bool_]) -> None:
    """Draw a line between every cell that is marked and one beside it that is not."""
    padded = np.pad(danger, 1)
    lines = []
    for row, step in np.argwhere(padded[1:] != padded[:-1]):
        lines.append([(step - 1.5, row - 0.5), (step - 0.5, row - 0.5)])
    for row, step in np.argwhere(padded[:, 1:] != padded[:, :-1]):
        lines.append([(step - 0.5, row - 1.5), (step - 0.5, row - 0.5)])
    axis.add_collection(LineCollection(lines, colors="#12a5a5", linewidths=1.0), autolim=False)


def _mark_computed(axis: Axes, plan: Plan) -> None:
    computed = np.array([[symbol == "C" for symbol in row] for row in plan.rows])
    rows, steps = np.nonzero(computed)
    axis.scatter(steps, rows, s=5, color="#2b6cff", linewidths=0)


def _name_regions(axis: Axes, regions: Sequence[str], *, first: bool) -> None:
    stride = -(-len(regions) // _LABELS)
    places = range(0, len(regions), stride)
    if first:
        axis.set_yticks(list(places), [regions[place] for place in places])
    axis.tick_params(length=0, labelsize=7, labelleft=first)
    axis.spines[:].set_visible(False)
