"""Samples without and with the plan, side by side with their difference."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from soda_compile.plans.figure_file import new_figure
from soda_compile.report.subject import Pair

SHOWN = 8


def samples_figure(pairs: Sequence[Pair]) -> Figure:
    """Draw the first pairs: original, accelerated, and the difference, which is enlarged by the same factor in all."""
    shown = pairs[:SHOWN]
    largest = max(float(np.abs(pair.accelerated - pair.original).max()) for pair in shown)
    factor = 1.0 if largest == 0 else min(20.0, 1 / largest)
    figure = new_figure(1.6 * max(len(shown), 3), 5.4)
    axes = figure.subplots(3, len(shown), squeeze=False)
    for column, pair in zip(axes.T, shown, strict=True):
        images = (pair.original, pair.accelerated, np.abs(pair.accelerated - pair.original) * factor)
        for axis, image in zip(column, images, strict=True):
            axis.imshow(np.clip(image, 0, 1), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_color("#cccccc")
        column[0].set_title(pair.name, fontsize=8)
        column[2].set_xlabel(f"{pair.relative_error:.2%}", fontsize=8)
    for axis, name in zip(axes[:, 0], ("original", "accelerated", f"difference, x{factor:.3g}"), strict=True):
        axis.set_ylabel(name, fontsize=9)
    return figure
