"""Pictures of plans: regions by steps, coloured by action. Needs matplotlib."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from soda_compile.plans.actions import ACTIONS
from soda_compile.plans.figure_file import new_figure, png_of
from soda_compile.plans.operators import OPERATORS
from soda_compile.plans.plan import Plan

# By action symbol; dark is work, light is none.
COLORS = {"C": "#1f3a5f", **{operator.symbol: operator.colour for operator in OPERATORS}}
SYMBOLS = tuple(action.symbol for action in ACTIONS)


def plans_png(plans: Mapping[str, Plan]) -> bytes:
    """Return a PNG with a grid for each plan, by name."""
    heights = [0.16 * len(plan.regions) + 1.1 for plan in plans.values()]
    figure = new_figure(13, sum(heights) + 0.5)
    axes = figure.subplots(len(plans), 1, squeeze=False, height_ratios=heights)[:, 0]
    for number, (axis, (name, plan)) in enumerate(zip(axes, plans.items(), strict=True)):
        draw_plan(axis, name, plan, legend=number == len(plans) - 1)
    return png_of(figure)


def draw_plan(axis: Axes, name: str, plan: Plan, *, legend: bool) -> None:
    """Draw one plan as a grid.

    Args:
        axis: Where to.
        name: The title begins with it.
        plan: The plan.
        legend: Whether to say below what the colours mean.
    """
    codes = np.array([[SYMBOLS.index(symbol) for symbol in row] for row in plan.rows])
    colors = ListedColormap([COLORS[symbol] for symbol in SYMBOLS])
    axis.pcolormesh(codes, cmap=colors, vmin=-0.5, vmax=len(SYMBOLS) - 0.5, edgecolors="white", linewidth=0.8)
    axis.invert_yaxis()
    axis.set_yticks(np.arange(len(plan.regions)) + 0.5, plan.regions, fontsize=7)
    ticks = range(0, plan.steps, 5)
    axis.set_xticks(np.array(ticks) + 0.5, [str(tick) for tick in ticks], fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("step", fontsize=9)
    flops = "" if plan.flop_ratio is None else f", {plan.flop_ratio:.3f} of the FLOPs"
    title = f"{name}: {len(plan.anchors)} of {plan.steps} steps compute everything{flops}"
    axis.set_title(title, fontsize=11, loc="left")
    if legend:
        used = [action for action in ACTIONS if action.symbol in "".join(plan.rows)]
        patches = [Patch(color=COLORS[action.symbol], label=str(action)) for action in used]
        axis.legend(handles=patches, ncols=len(used), loc="upper right", bbox_to_anchor=(1, -0.08), frameon=False)
