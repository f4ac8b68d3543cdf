"""What was predicted of plans against what generations by them were seen to be off."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from soda_compile.acceleration.measurement_folder import Verified
from soda_compile.plans.plan import Plan


def draw_truth(axis: Axes, verified: Sequence[tuple[Plan, Verified]]) -> None:
    """Draw for each plan its predicted error, and the true ones from their mean to the worst."""
    for plan, each in verified:
        if not plan.predicted_error:  # none, or none to be put on a logarithmic axis
            continue
        axis.plot([plan.predicted_error] * 2, [each.mean, each.worst], "-", color="#bbbbbb")
        axis.plot(plan.predicted_error, each.mean, "o", color="#1f3a5f")
        axis.annotate(
            each.request, (plan.predicted_error, each.mean), fontsize=8, xytext=(6, 0), textcoords="offset points"
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("predicted error, summed", fontsize=9)
    axis.set_ylabel("relative L2 of the samples", fontsize=9)
    axis.set_title("predicted and true error: mean (point) to worst", fontsize=11, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#eeeeee")
