"""A plan as text: one row per region, one column per step."""

import re
import shutil
from collections import Counter
from collections.abc import Sequence


def render(
    regions: Sequence[str],
    rows: Sequence[str],
    anchors: Sequence[int],
    legend: dict[str, str],
    flop_ratio: float | None = None,
    width: int | None = None,
) -> str:
    """Draw the grid, wrapped into as many bands of steps as the width needs.

    Regions that differ only in their block number and do the same share a line, "blocks.0-27.attn1 (x28)".

    Args:
        regions: region names.
        rows: per region one string with one symbol per step.
        anchors: steps where every region computes; marked with "A" in the header.
        legend: what each symbol stands for.
        flop_ratio: FLOPs of the plan / FLOPs of computing everything, for the footer.
        width: columns to use, the terminal's by default.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    lines = collapse(regions, rows)
    indent = max(len("anchors"), *(len(label) for label, _ in lines)) + 2
    columns = max(10, (width - indent) // 10 * 10)
    steps = len(rows[0])
    out: list[str] = []
    for start in range(0, steps, columns):
        band = range(start, min(start + columns, steps))
        out += [f"{label:<{indent}}{text}" for label, text in _header(band, set(anchors))]
        out += [f"{label:<{indent}}{row[band.start : band.stop]}" for label, row in lines]
        out.append("")
    return "\n".join([*(line.rstrip() for line in out), _footer(rows, anchors, legend, flop_ratio)])


def collapse(regions: Sequence[str], rows: Sequence[str]) -> list[tuple[str, str]]:
    """Join regions with the same row whose names differ only in their first number.

    Returns:
        (label, row) in the order of first appearance.
    """
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name, row in zip(regions, rows, strict=True):
        match = re.search(r"(?<![^.])\d+(?![^.])", name)
        prefix, number, suffix = (name[: match.start()], match[0], name[match.end() :]) if match else (name, "", "")
        groups.setdefault((prefix, suffix, row), []).append(number)
    return [(_label(prefix, numbers, suffix), row) for (prefix, suffix, row), numbers in groups.items()]


def _label(prefix: str, numbers: list[str], suffix: str) -> str:
    if len(numbers) == 1:
        return prefix + numbers[0] + suffix
    runs: list[list[int]] = []
    for number in sorted(map(int, numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    spans = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"{prefix}{spans}{suffix} (x{len(numbers)})"


def _header(band: range, anchors: set[int]) -> list[tuple[str, str]]:
    def digit(step: int, place: int) -> str:
        show = step >= place and (step % 10 == 0 or step == band.start)
        return str(step // place % 10) if show else " "

    places = [place for place in (100, 10) if band[-1] >= place]
    return [
        *(("step" if place == places[0] else "", "".join(digit(step, place) for step in band)) for place in places),
        ("" if places else "step", "".join(str(step % 10) for step in band)),
        ("anchors", "".join("A" if step in anchors else "." for step in band)),
    ]


def _footer(rows: Sequence[str], anchors: Sequence[int], legend: dict[str, str], flop_ratio: float | None) -> str:
    counts = Counter("".join(rows))
    total = counts.total()
    parts = [f"{symbol} {name} {counts[symbol]} ({counts[symbol] / total:.0%})" for symbol, name in legend.items()]
    summary = f"{len(rows)} regions x {len(rows[0])} steps, {len(anchors)} anchor steps"
    if flop_ratio is not None:
        summary += f", {flop_ratio:.3f} of the FLOPs"
    return "\n".join([", ".join(parts), summary])
