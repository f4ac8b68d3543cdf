"""The results as Markdown: tables by cost, what did not run, and how ranks change with the measure."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.leaderboard.statistics import mean_interval, paired_ratio, rank_correlation, ranks

Row = Mapping[str, Any]
BASE = "ours, closest"
MEASURES = {  # key, title, largest first
    "relative_l2_mean": ("relative L2", False),
    "relative_l2_worst": ("worst 5%", False),
    "psnr": ("PSNR", True),
    "ssim": ("SSIM", True),
    "label_agreement": ("labels", True),
    "frechet": ("Fréchet", False),
    "seconds": ("time", False),
    "held_bytes": ("memory", False),
}
HEAD = ("rank", "method", "how", "cost", "relative L2 (95%)", "ratio to ours (95%)", "worst 5%", "PSNR", "SSIM",
        "labels", "Fréchet", "time", "kept", "calibration", "setting")  # fmt: skip


def markdown(report: Mapping[str, Any]) -> str:
    lines = [
        "# How close accelerated generations stay to the original at equal cost",
        "",
        "Cost is the share of the denoiser's FLOPs over all steps of the original, counted as the scored",
        "generations ran (ours: regions computed, as the runtime counted them). Every method is tuned for each",
        "budget on the same calibration seeds, and scored on others: of the settings that cost at most the budget,",
        "the one of the least error. *rule* is the authors' rule in an emulator of ours, *their code* is that",
        "itself. Rules that decide from data decide for a whole batch. Relative L2 is of the last latents; the",
        "ratio is paired by sample (geometric mean); PSNR, SSIM and labels compare with the original's images.",
        "Intervals are bootstraps over samples. Time is of all rows in eager mode, ours operator by operator",
        "without Inductor, over that of the original in the same mode: it says what the rules themselves take, not",
        "how fast compiled code is. Calibration is what ours measured, tried and fitted, and peers tuned. Kept memory",
        "is of one image. Fréchet distances are to the original's samples of other seeds; the floor is the",
        "original's own, ± its standard deviation over draws of samples of each label (bootstrap), where known.",
    ]
    for name, facts in report["models"].items():
        rows = [row for row in report["rows"] if row["model"] == name]
        lines += ["", f"## {facts['title']}", "", *(f"{key}: {value}  " for key, value in facts["settings"].items())]
        for budget in sorted({row["budget"] for row in rows}, reverse=True):
            own = [row for row in rows if row["budget"] == budget]
            lines += ["", f"### Budget {budget:g}", "", *_table(own, facts)]
        lines += ["", "### How ranks change with the measure", "", *_ranks(rows)]
        lines += _reasons(rows)
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row], facts: Mapping[str, Any]) -> list[str]:
    done = sorted((row for row in rows if "reason" not in row), key=lambda row: float(row["relative_l2_mean"]))
    base = next((row for row in done if row["method"] == BASE), None)
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    return lines + [_line(_cells(number, row, base, facts)) for number, row in enumerate(done, 1)]


def _cells(number: int, row: Row, base: Row | None, facts: Mapping[str, Any]) -> list[str]:
    low, high = mean_interval(row["relative_l2"])
    ratio = "" if base is None else "{:.2f} ({:.2f}–{:.2f})".format(
        *paired_ratio(row["relative_l2"], base["relative_l2"])
    )  # fmt: skip
    return [
        str(number),
        f"**{row['method']}**" if row["kind"] == "ours" else row["method"],
        row["kind"],
        f"{row['cost']:.3f}",
        f"{row['relative_l2_mean']:.2%} ({low:.2%}–{high:.2%})",
        ratio,
        f"{row['relative_l2_worst']:.2%}",
        f"{row['psnr']:.1f}",
        f"{row['ssim']:.4f}",
        f"{row['label_agreement']:.0%}",
        _distance(row.get("frechet")),
        f"{row['seconds'] / facts['seconds']:.2f}" if row.get("seconds") and facts.get("seconds") else "",
        f"{row['held_bytes'] / 1024:.0f} KiB",
        f"{row['calibration_seconds']:.0f} s" if "calibration_seconds" in row else "",
        row.get("setting", ""),
    ]


def _distance(found: Mapping[str, float] | None) -> str:
    """A Fréchet distance with the original's own, and its standard deviation over draws of seeds where it is known."""
    if not found:
        return ""
    deviation = found.get("to_original_floor_deviation")
    spread = "" if deviation is None else f" ± {deviation:.2g}"
    return f"{found['to_original']:.3g} (floor {found['to_original_floor']:.3g}{spread})"


def _score(row: Row, measure: str) -> float:
    value = row["frechet"]["to_original"] if measure == "frechet" and row.get("frechet") else row.get(measure)
    return float(value) if isinstance(value, int | float) else float("nan")


def rankings(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """By measure the rank of each method at one budget."""
    done = [row for row in rows if "reason" not in row]
    return {
        measure: ranks({row["method"]: _score(row, measure) for row in done}, largest)
        for measure, (_, largest) in MEASURES.items()
    }


def _ranks(rows: Sequence[Row]) -> list[str]:
    titles = [title for title, _ in MEASURES.values()]
    lines = []
    for budget in sorted({row["budget"] for row in rows}, reverse=True):
        found = rankings([row for row in rows if row["budget"] == budget])
        first = found["relative_l2_mean"]
        lines += [f"Budget {budget:g}:", "", _line(["method", *titles]), _line(["---"] * (len(titles) + 1))]
        for method in sorted(first, key=lambda name: first[name]):
            lines.append(_line([method, *(str(found[measure].get(method, "")) for measure in MEASURES)]))
        correlations = (rank_correlation(first, found[measure]) for measure in MEASURES)
        lines.append(_line(["*correlation with relative L2*", *(_number(each) for each in correlations)]))
        lines.append("")
    return lines


def _number(value: float) -> str:
    return "" if value != value else f"{value:.2f}"


def _reasons(rows: Sequence[Row]) -> list[str]:
    by_reason: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "reason" in row:
            by_reason.setdefault((row["method"], row["reason"]), []).append(f"{row['budget']:g}")
    if not by_reason:
        return []
    lines = ["### What has no row", "", _line(["method", "budgets", "why"]), _line(["---"] * 3)]
    return lines + [_line([method, ", ".join(budgets), why]) for (method, why), budgets in sorted(by_reason.items())]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(each.replace('|', '/') for each in cells)} |"
