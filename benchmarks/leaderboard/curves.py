"""One chart for each model: relative L2 over cost, with 95% bands."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.leaderboard.statistics import mean_interval

STYLES = {"ours": "-", "rule": "--", "their code": "-.", "fewer steps": ":"}


def draw(report: Mapping[str, Any], model: str, path: Path) -> None:
    """Write the chart of one model."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = [row for row in report["rows"] if row["model"] == model and "reason" not in row]
    names = sorted({row["method"] for row in rows}, key=lambda name: (not name.startswith("ours"), name))
    figure, axes = pyplot.subplots(figsize=(11, 7))
    colours = pyplot.get_cmap("tab20")
    for number, name in enumerate(names):
        own = sorted((row for row in rows if row["method"] == name), key=lambda row: float(row["cost"]))
        costs = [row["cost"] for row in own]
        bands = [mean_interval(row["relative_l2"]) for row in own]
        colour, kind = colours(number % 20), own[0]["kind"]
        means = [row["relative_l2_mean"] for row in own]
        width = 2.5 if kind == "ours" else 1.2
        axes.plot(costs, means, STYLES[kind], marker="o", markersize=3, color=colour, linewidth=width, label=name)
        lows, highs = [low for low, _ in bands], [high for _, high in bands]
        axes.fill_between(costs, lows, highs, color=colour, alpha=0.12, linewidth=0)
    axes.set(xlabel="share of the original's FLOPs", ylabel="relative L2 to the original", yscale="log",
             title=report["models"][model]["title"])  # fmt: skip
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path, dpi=130, bbox_inches="tight")
    pyplot.close(figure)
