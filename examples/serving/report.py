"""Writes the figures of a load test: all of them as JSON, and a table."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from examples.serving.judge import MARGIN, Judged, summary
from examples.serving.metrics import totals
from soda_compile.storage.files import write_atomic


def figures(rows: Sequence[Judged], busy_seconds: Mapping[str, float], began: Mapping[str, Any]) -> dict[str, Any]:
    """Return all figures.

    Args:
        rows: One for each order.
        busy_seconds: By service, how long it had orders while nothing was restarted.
        began: How services started, and what their metrics say.
    """
    services: dict[str, Any] = {}
    for service, seconds in busy_seconds.items():
        mine = [row for row in rows if row.service == service]
        steady = summary(row for row in mine if not row.restarting)
        restarting = summary(row for row in mine if row.restarting)
        steady["orders_per_second"] = steady["drawn"] / seconds if seconds else 0.0
        services[service] = {"steady": steady, "restarting": restarting}
    pages: Mapping[str, Sequence[str]] = began["metrics"]
    started = {name: [_start(state) for state in states] for name, states in began["started"].items()}
    restarted = {name: [_start(state) for state in states] for name, states in began["restarted"].items()}
    return {
        **began,
        "command": f"python -m examples.serving.load_test {' '.join(sys.argv[1:])}".strip(),
        "versions": {name: version(name) for name in ("torch", "ray", "diffusers", "aiohttp")},
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "sent": len(rows),
        "services": services,
        "started": started,
        "restarted": restarted,
        "metrics": {name: [totals(page) for page in each] for name, each in pages.items()},
    }


def _start(state: Mapping[str, Any]) -> dict[str, Any]:
    return {"seconds": state["seconds"], "generations_measured": state["measured"]}


def table(result: Mapping[str, Any]) -> str:
    """Return the most important figures as Markdown."""
    lines = [
        "| service | | sent | drawn | given up | failed | differ | equal bits | far | p50 | p90 | p99 | orders/s |"
    ]
    lines += ["|" + "---|" * 13]
    for service, phases in result["services"].items():
        lines += [_row(service, phase, each) for phase, each in phases.items() if each["sent"]]
    lines += ["", "Latencies in seconds. Relative error of a picture to the original:", ""]
    lines += ["| service | steps | mean | worst | worst of other seeds, alone |", "|---|---|---|---|---|"]
    for service, phases in result["services"].items():
        for steps, each in phases["steady"].get("errors", {}).items():
            told = f"{result['told'][int(steps)]:.1%}" if service != "plain" else ""
            lines.append(f"| {service} | {steps} | {each['mean']:.2g} | {each['worst']:.2g} | {told} |")
    lines += ["", "| service | replicas | seconds to start | generations measured |", "|---|---|---|---|"]
    for kind in ("started", "restarted"):
        lines += [_starts(service, kind, states) for service, states in result[kind].items()]
    return "\n".join([*lines, "", *_notes(result)]) + "\n"


def _row(service: str, phase: str, each: Mapping[str, Any]) -> str:
    counts = [each[key] for key in ("sent", "drawn", "given_up", "failed", "differ")]
    latency = [f"{value:.2f}" for value in each["latency_seconds"].values()] if each["drawn"] else ["", "", ""]
    rate = f"{each['orders_per_second']:.2f}" if "orders_per_second" in each else ""
    cells = [service, phase, *counts, each.get("equal_bits", ""), each["far"], *latency, rate]
    return f"| {' | '.join(map(str, cells))} |"


def _starts(service: str, kind: str, states: Sequence[Mapping[str, Any]]) -> str:
    seconds = ", ".join(f"{state['seconds']:.1f}" for state in states)
    measured = ", ".join(str(state["generations_measured"]) for state in states)
    return f"| {service} | {kind} | {seconds} | {measured} |"


def _notes(result: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    load = [f"{result[key][0]:.1f}" for key in ("load_average_before", "load_average_after")]
    machine = result["machine"]
    misses = sum(
        value for pages in result["metrics"].values() for key, value in pages[-1].items() if "misses_total" in key
    )
    return [
        f"`{result['command']}`: {result['sent']} orders from {result['clients']} clients, two replicas of each "
        f"service, blocks of orders to the services in turns. {versions}; {machine['architecture']}, "
        f"{machine['cores']} cores, load average {load[0]} before and {load[1]} after.",
        "",
        f"Measurements in the store at the end: {result['measurements_stored']}. Denoiser calls without a plan, by the "
        f"metrics: {misses:.0f}. Orders differ where a pixel is off by more than rounding from the same order drawn "
        f"alone in another process. Far are those more than {MARGIN:g} times as far from the original as the worst "
        "picture of other seeds by that plan.",
    ]


def write(out: Path, rows: Sequence[Judged], busy_seconds: Mapping[str, float], began: Mapping[str, Any]) -> bool:
    """Write the figures and the table beside them, and print that; return whether all was drawn as it is alone."""
    result = figures(rows, busy_seconds, began)
    write_atomic(out, json.dumps(result, indent=1).encode())
    write_atomic(out.with_suffix(".md"), table(result).encode())
    print(table(result))
    return all(row.outcome != "failed" and not row.differs for row in rows)
