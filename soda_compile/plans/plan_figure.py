"""Pictures of plans: regions by steps, coloured by action. Needs matplotlib."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_hex, to_rgb
from matplotlib.patches import Patch

from soda_compile.plans.actions import Action
from soda_compile.plans.figure_file import new_figure, png_of
from soda_compile.plans.operators import OPERATORS
from soda_compile.plans.plan import Plan

# Dark is work, light is none; prunes are green, the lighter the fewer tokens they compute.
_COMPUTE, _PRUNES = "#1f3a5f", ("#1f6b45", "#cfe8d5")


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
    used = {
        action: color_of(action) for action in sorted({action for row in plan.actions for action in row}, key=_order)
    }
    codes = np.array([[list(used).index(action) for action in row] for row in plan.actions])
    colors = ListedColormap(list(used.values()))
    axis.pcolormesh(codes, cmap=colors, vmin=-0.5, vmax=len(used) - 0.5, edgecolors="white", linewidth=0.8)
    axis.invert_yaxis()
    axis.set_yticks(np.arange(len(plan.regions)) + 0.5, plan.regions, fontsize=7)
    ticks = range(0, plan.steps, 5)
    axis.set_xticks(np.array(ticks) + 0.5, [str(tick) for tick in ticks], fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("step", fontsize=9, loc="left")
    flops = "" if plan.flop_ratio is None else f", {plan.flop_ratio:.3f} of the FLOPs"
    title = f"{name}: {len(plan.anchors)} of {plan.steps} steps compute everything{flops}"
    axis.set_title(title, fontsize=11, loc="left")
    if legend:
        patches = [Patch(color=color, label=str(action)) for action, color in used.items()]
        axis.legend(
            handles=patches, ncols=min(len(used), 8), loc="upper right", bbox_to_anchor=(1, -0.08), frameon=False
        )


def color_of(action: Action) -> str:
    """Return the colour of an action."""
    if action.kind == "compute":
        return _COMPUTE
    if action.kind != "prune":
        return OPERATORS[action.order].colour
    few, many = (np.array(to_rgb(color)) for color in _PRUNES)
    return to_hex(few + (many - few) * action.rate)


def _order(action: Action) -> tuple[bool, int, float, float]:
    """Return a key that puts work first."""
    return action.kind != "compute", action.order, action.rate, action.side_rate
