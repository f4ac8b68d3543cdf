"""Statistics in the text format that Prometheus scrapes (its exposition format, version 0.0.4)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class _Metric:
    """One metric.

    Attributes:
        name: Its name.
        kind: Whether it only grows.
        help: What it counts.
        key: Where it is among the statistics of a denoiser.
        label: What tells its parts apart, where it has several by name.
        parts: The parts that are shown; all of them where it names none.
    """

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    key: str
    label: str = ""
    parts: tuple[str, ...] = ()


_METRICS = (
    _Metric("soda_compile_calls_total", "counter", "Denoiser calls that followed a plan.", "calls"),
    _Metric("soda_compile_regions_total", "counter", "Regions in these calls, by what they did.", "regions", "action"),
    _Metric("soda_compile_misses_total", "counter", "Denoiser calls without a plan, by the reason.", "misses", "kind"),
    _Metric("soda_compile_guarded_total", "counter", "Denoiser calls computed in full by the guard.", "guarded"),
    _Metric(
        "soda_compile_drift",
        "gauge",
        "Error of forecasts at anchors, and how many times the expected one that is.",
        "drift",
        "of",
        ("error", "ratio", "last_ratio", "worst_ratio"),
    ),
    _Metric("soda_compile_slot_bytes", "gauge", "Memory of kept values now.", "slot_bytes"),
    _Metric("soda_compile_slot_bytes_peak", "gauge", "Memory of kept values at most.", "slot_bytes_peak"),
    _Metric("soda_compile_compilations_total", "counter", "Graphs that were compiled.", "compilations"),
    _Metric("soda_compile_compile_seconds_total", "counter", "Time that compiling took.", "compile_seconds"),
)


def prometheus_text(statistics: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the statistics of each denoiser, by name, as a page to be scraped."""
    return "".join(f"{line}\n" for metric in _METRICS for line in _lines(metric, statistics))


def _lines(metric: _Metric, statistics: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield f"# HELP {metric.name} {metric.help}"
    yield f"# TYPE {metric.name} {metric.kind}"
    for denoiser, counts in statistics.items():
        found = counts[metric.key]
        for part, value in found.items() if metric.label else [("", found)]:
            if value is None or (metric.parts and part not in metric.parts):
                continue
            labels = {"denoiser": denoiser} | ({metric.label: part} if metric.label else {})
            listed = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
            yield f"{metric.name}{{{listed}}} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
