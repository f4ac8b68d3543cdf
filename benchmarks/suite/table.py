"""The results as Markdown."""

from collections.abc import Sequence
from typing import Any

from benchmarks.suite.bars import Verdict, verdicts
from benchmarks.suite.results import Figures, fastest_plain, figures

HEADINGS = (
    "method", "trajectory s", "±", "computed step ms", "other step ms", "× torch.compile", "FLOPs", "time/FLOPs saved",
    "graph calls", "kernels", "kept MB", "peak MB", "cold compile s", "warm start s", "note",
)  # fmt: skip


def markdown(report: dict[str, Any]) -> str:
    """The whole report."""
    lines = [f"# Suite, {report['about']['device']}", "", *_about(report), ""]
    for model in report["models"].values():
        lines += [f"## {model['title']}", "", *_model(model), ""]
    if report.get("host"):
        lines += ["## Host time", "", *_host(report["host"]), ""]
    lines += ["## Bars", "", *_bars(verdicts(report))]
    return "\n".join(lines) + "\n"


def grid(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table; a bar in a cell is escaped."""
    for row in rows:
        if len(row) != len(headings):
            raise ValueError(f"a row has {len(row)} cells for {len(headings)} headings: {row}")
    cells = [headings, ["---"] * len(headings), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]


def _about(report: dict[str, Any]) -> list[str]:
    about = report["about"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return [
        f"{versions}; sources {about.get('sources', 'unknown')}. Random weights, seed {about['seeds']['weights']}; "
        f"inputs, seed {about['seeds']['inputs']}.",
        "",
        "Every method runs in a process of its own; the rounds are interleaved. Times are medians, ± is the "
        "interquartile range over the median; compilation and warm-up are apart. × torch.compile is the median of the "
        "ratios of each round to the faster mode of torch.compile. FLOPs are over those of computing everything, "
        "time/FLOPs saved is the share of the time saved over the share of the FLOPs saved. Graph calls and kernels "
        "are those of a computed step / of another, on a GPU with the launches that they take. Kept is what the method "
        "keeps between steps; the peak is that of "
        + ("the allocator." if about["type"] == "cuda" else "the process, compiler included.")
        + " A warm start finds the compiler's caches of the cold one.",
        *(["", *about["notes"]] if about.get("notes") else []),
    ]


def _model(model: dict[str, Any]) -> list[str]:
    if "reason" in model:
        return [f"Left out: {model['reason']}"]
    settings = model["settings"]
    about = (
        f"{settings['steps']} steps, {settings['dtype']}, batch {model['batch']}, {settings['rounds']} rounds, "
        f"{settings['threads']} threads; load average at the start {settings.get('load_average', 'unknown')}."
    )
    plain = fastest_plain(model["rows"])
    rows = [_row(row, figures(row, plain) if "rounds" in row else None) for row in model["rows"]]
    return [about, "", *grid(HEADINGS, rows)]


def _row(row: dict[str, Any], found: Figures | None) -> list[str]:
    if found is None:
        return [row["name"], *[""] * (len(HEADINGS) - 2), row["reason"]]
    profile, memory = row.get("profile", {}), row.get("memory", {})
    kinds = [profile[kind] for kind in ("anchor", "other") if kind in profile]
    return [
        row["name"],
        f"{found.seconds:.3f}",
        f"{found.spread:.0%}",
        f"{found.anchor_ms:.2f}",
        _number(found.other_ms, ".2f"),
        _number(found.speedup, ".2f"),
        f"{found.flop_ratio:.3f}",
        _number(found.efficiency, ".0%"),
        " / ".join(str(kind["graph_calls"]) for kind in kinds),
        " / ".join(_kernels(kind) for kind in kinds),
        _number(memory.get("held_bytes"), ".1f", 1e6),
        _number(memory.get("peak_bytes"), ".0f", 1e6),
        _number(row.get("cold_seconds"), ".1f"),
        _number(row.get("warm_seconds"), ".1f"),
        "; ".join(row.get("notes", [])),
    ]


def _kernels(counts: dict[str, int]) -> str:
    """Kernels, and on a GPU in how many launches."""
    return f"{counts['kernels']} in {counts['launches']}" if counts["launches"] else str(counts["kernels"])


def _number(value: float | None, form: str, unit: float = 1.0) -> str:
    return "" if value is None else format(value / unit, form)


def _host(host: dict[str, Any]) -> list[str]:
    if "reason" in host:
        return [f"Not measured: {host['reason']}"]
    kinds = list(host["steps"])
    names = list(next(iter(host["steps"].values())))
    rows = [[name, *(f"{host['steps'][kind][name]:.0f}" for kind in kinds)] for name in names]
    return [f"{host['title']}: microseconds a step, median.", "", *grid(["", *kinds], rows)]


def _bars(found: list[Verdict]) -> list[str]:
    return grid(("bar", "wanted", "measured", ""), [[bar.what, bar.wanted, bar.measured, bar.word] for bar in found])
