"""From raw samples to the figures of the table."""

import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.suite.masks import computed

Row = dict[str, Any]


@dataclass(frozen=True)
class Figures:
    """What the table says of one row; None where it does not apply.

    Attributes:
        seconds: Median of a trajectory.
        spread: Interquartile range over median.
        anchor_ms: Median of a computed step.
        other_ms: Median of a step that is not.
        speedup: Over the faster mode of torch.compile, median of the ratios of each round.
        flop_ratio: FLOPs of the trajectory over those of computing everything.
        efficiency: Share of the time saved over share of the FLOPs saved.
    """

    seconds: float
    spread: float
    anchor_ms: float
    other_ms: float | None
    speedup: float | None
    flop_ratio: float
    efficiency: float | None


def figures(row: Row, baseline: Row | None) -> Figures:
    """Figures of a measured row; ``baseline`` is what ``fastest_plain`` gives."""
    seconds = [sample["seconds"] for sample in row["rounds"]]
    mask = computed(len(row["flops"]), row["interval"])
    ratio = sum(row["flops"]) / (len(row["flops"]) * row["flops"][0])
    speedup = round_ratio(baseline, row) if baseline else None
    saves = speedup is not None and ratio < 0.99
    return Figures(
        seconds=_median_seconds(row),
        spread=spread(seconds),
        anchor_ms=step_ms(row, [step for step, is_computed in enumerate(mask) if is_computed]) or 0.0,
        other_ms=step_ms(row, [step for step, is_computed in enumerate(mask) if not is_computed]),
        speedup=speedup,
        flop_ratio=ratio,
        efficiency=(1 - 1 / speedup) / (1 - ratio) if speedup is not None and saves else None,
    )


def round_ratio(slow: Row, fast: Row) -> float:
    """How many times longer a trajectory of the one takes than of the other: median over the rounds they share.

    Where they share none, because one of them ended early, it is the ratio of the medians.
    """
    times = {sample["round"]: sample["seconds"] for sample in slow["rounds"]}
    ratios = [times[sample["round"]] / sample["seconds"] for sample in fast["rounds"] if sample["round"] in times]
    if not ratios:
        ratios = [_median_seconds(slow) / _median_seconds(fast)]
    return float(statistics.median(ratios))


def _median_seconds(row: Row) -> float:
    return float(statistics.median(sample["seconds"] for sample in row["rounds"]))


def fastest_plain(rows: list[Row]) -> Row | None:
    """The faster one of torch.compile's modes."""
    plain = [row for row in rows if row["group"] == "torch.compile" and "rounds" in row]
    return min(plain, key=_median_seconds, default=None)


def step_ms(row: Row, steps: list[int]) -> float | None:
    """Median over all rounds of the steps' times, in milliseconds."""
    times = [sample["steps"][step] * 1e3 for sample in row["rounds"] for step in steps]
    return statistics.median(times) if times else None


def spread(values: list[float]) -> float:
    """Interquartile range over median; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle
