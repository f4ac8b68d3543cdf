"""What the suite is to show, and whether it does."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.suite.methods import SPARSE
from benchmarks.suite.results import Row, fastest_plain, figures, round_ratio, step_ms

WAYS = {"soda": "", "soda ahead": ", conditioning ahead"}
"""Beginnings of the names of our rows, and what to say of them."""


@dataclass(frozen=True)
class Verdict:
    """One figure against one bar; ``met`` is None where it was not measured."""

    what: str
    wanted: str
    measured: str
    met: bool | None

    @property
    def word(self) -> str:
        return {None: "not measured", True: "met", False: "missed"}[self.met]


def verdicts(report: dict[str, Any]) -> list[Verdict]:
    """All bars, in the order of the project's description of them."""
    models = {name: model for name, model in report["models"].items() if "rows" in model}
    found: list[Verdict] = []
    for bar in (_everything, _efficiency, _peers, _compile_time, _reused_step):
        for name, model in models.items():
            rows = {row["name"]: row for row in model["rows"] if "rounds" in row}
            found += bar(name, model, rows)
    return [*found, *_host(report.get("host") or {})]


def _everything(name: str, model: dict[str, Any], rows: dict[str, Row]) -> Iterator[Verdict]:
    """1. Computing everything costs what torch.compile costs."""
    plains = [row for row in rows.values() if row["group"] == "torch.compile" and "dynamic" not in row["name"]]
    for plain in plains:
        for start, note in WAYS.items():
            ours = rows.get(plain["name"].replace("torch.compile", f"{start}, everything"))
            what = f"{model['title']}: everything computed{note}, over {plain['name']}"
            if ours is None:
                yield Verdict(what, "at most 1.02", "", None)
            else:
                ratio = 1 / round_ratio(plain, ours)
                yield Verdict(what, "at most 1.02", f"{ratio:.3f}", ratio <= 1.02)


def _efficiency(name: str, model: dict[str, Any], rows: dict[str, Row]) -> Iterator[Verdict]:
    """2. Saved FLOPs are saved time; the least efficient plan of the fastest mode counts.

    Conditioning ahead is left out: it saves time at computed steps too, which is no merit of the plan.
    """
    wanted = 0.95 if model["large"] else 0.85
    plain = fastest_plain(list(rows.values()))
    for kind in ("reuse", "forecast"):
        modes: dict[str | None, list[float]] = {}
        for row in rows.values():
            if row["name"].startswith(f"soda, {kind}"):
                value = figures(row, plain).efficiency
                modes.setdefault(row["mode"], []).extend([] if value is None else [value])
        best = max((min(values) for values in modes.values() if values), default=None)
        what = f"{model['title']}: share of time saved over share of FLOPs saved, {kind}"
        measured = "" if best is None else f"{best:.0%}"
        yield Verdict(what, f"at least {wanted:.0%}", measured, None if best is None else best >= wanted)


def _peers(name: str, model: dict[str, Any], rows: dict[str, Row]) -> Iterator[Verdict]:
    """3. Faster than the fastest peer that follows the same mask."""
    peers = [row for row in rows.values() if row["group"] == "peer" and row.get("follows_mask")]
    for kind in ("reuse", "forecast"):
        ours = _ours(rows, f"{kind}, interval {SPARSE}")
        what = f"{model['title']}: times faster than the fastest peer at the same mask, {kind}"
        if not ours or not peers:
            yield Verdict(what, "at least 1.3", "", None)
            continue
        peer = min(peers, key=lambda row: figures(row, None).seconds)
        ratio, best = max((round_ratio(peer, row), row["name"]) for row in ours)
        yield Verdict(what, "at least 1.3", f"{ratio:.2f} ({best}, over {peer['name']})", ratio >= 1.3)


def _ours(rows: dict[str, Row], plan: str) -> list[Row]:
    """Our rows of a plan, of all modes, conditioning ahead or not."""
    titles = [f"{start}, {plan}" for start in WAYS]
    return [row for row in rows.values() if row["name"].split(", reduce")[0] in titles]


def _compile_time(name: str, model: dict[str, Any], rows: dict[str, Row]) -> Iterator[Verdict]:
    """4. All variants of a plan compile faster than torch.compile, and start warm in a tenth of that."""
    plain = rows.get("torch.compile", {}).get("cold_seconds")
    bars = (("cold_seconds", "below 1", 1.0), ("warm_seconds", "below 0.10", 0.1))
    for (key, wanted, limit), (start, note) in itertools.product(bars, WAYS.items()):
        what = f"{model['title']}: {key.split('_')[0]} start with a forecasting plan{note}, over cold torch.compile"
        seconds = rows.get(f"{start}, forecast, interval {SPARSE}", {}).get(key)
        if plain is None or seconds is None:
            yield Verdict(what, wanted, "", None)
        else:
            measured = f"{seconds / plain:.2f} ({seconds:.1f} s of {plain:.1f} s)"
            yield Verdict(what, wanted, measured, seconds / plain < limit)


def _reused_step(name: str, model: dict[str, Any], rows: dict[str, Row]) -> Iterator[Verdict]:
    """5. A step that reuses everything costs next to nothing."""
    limit = 0.05 if model["large"] else 0.10
    plain = fastest_plain(list(rows.values()))
    ours = [figures(row, None) for row in _ours(rows, f"reuse, interval {2 * SPARSE}")]
    what = f"{model['title']}: step that reuses everything, over a step of torch.compile"
    if plain is None or not ours:
        yield Verdict(what, f"at most {limit:.0%}", "", None)
        return
    full = step_ms(plain, list(range(len(plain["flops"])))) or 0.0
    share = min(found.other_ms or 0.0 for found in ours) / full
    yield Verdict(what, f"at most {limit:.0%}", f"{share:.1%}", share <= limit)


def _host(host: dict[str, Any]) -> Iterator[Verdict]:
    """6. The host is out of the way."""
    if "steps" not in host:
        yield Verdict("host time of a step outside of kernels", "below 100 us", "", None)
        return
    for kind, parts in host["steps"].items():
        for name, note in (("in all", ""), ("in all, as a package", ", as a package")):
            if name in parts:
                what = f"host time outside of kernels{note}, {kind}"
                yield Verdict(what, "below 100 us", f"{parts[name]:.0f} us", parts[name] < 100)
