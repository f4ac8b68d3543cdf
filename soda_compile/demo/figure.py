"""The picture of the demonstration: the digits of each method side by side, and the plans below."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soda_compile.demo.measure import Method, labels
from soda_compile.plans.figure_file import new_figure, png_of
from soda_compile.plans.plan_figure import draw_plan
from soda_compile.storage.files import write_atomic

COLUMNS = 12


def save_figure(path: Path, methods: Sequence[Method], captions: Sequence[str]) -> None:
    """Draw and write a PNG.

    Args:
        path: Where to.
        methods: The rows of digits; those with a plan get a grid as well.
        captions: For each method what to say under its name.
    """
    planned = [method for method in methods if method.plan is not None]
    columns = min(COLUMNS, len(methods[0].latents))
    heights = [0.95 * len(methods) + 0.4, *(0.16 * len(method.plan.regions) + 0.9 for method in planned if method.plan)]
    figure = new_figure(13, sum(heights) + 0.5)
    parts = figure.subfigures(1 + len(planned), 1, squeeze=False, height_ratios=heights, hspace=0.02)
    top, *grids = parts[:, 0]
    _draw_digits(top, methods, captions, columns)
    for index, (part, method) in enumerate(zip(grids, planned, strict=True)):
        assert method.plan is not None
        draw_plan(part.subplots(), method.name, method.plan, legend=index == len(planned) - 1)
    write_atomic(path, png_of(figure, dpi=130))


def _draw_digits(part: Any, methods: Sequence[Method], captions: Sequence[str], columns: int) -> None:
    axes = part.subplots(len(methods), columns, squeeze=False)
    for axis, label in zip(axes[0], labels(columns).tolist(), strict=True):
        axis.set_title(str(label), fontsize=12, color="#555555")
    for row, method, caption in zip(axes, methods, captions, strict=True):
        for axis, image in zip(row, method.images, strict=False):
            axis.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_color("#cccccc")
        row[0].set_ylabel(f"{method.name}\n", rotation=0, ha="right", va="center", fontsize=12, weight="bold")
        row[0].text(-0.16, 0.42, caption, transform=row[0].transAxes, ha="right", va="top", fontsize=9, color="#555555")
