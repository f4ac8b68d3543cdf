"""The results file: rows of several processes, added as they come."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soda_compile.storage.files import write_atomic
from soda_compile.storage.lock import locked

Report = dict[str, Any]
KEYS = ("model", "method", "budget")


def load(path: Path) -> Report:
    """What is there so far."""
    if not path.exists():
        return {"models": {}, "rows": []}
    report: Report = json.loads(path.read_text())
    return report


def add(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row; a row of the same model, method and budget is replaced, unless it has scores and the new one none."""
    with locked(path.parent, path.name, lambda: None):
        report = load(path)
        kept = [each for each in report["rows"] if key(each) != key(row)]
        before = [each for each in report["rows"] if key(each) == key(row)]
        better = [each for each in before if "reason" in row and "reason" not in each]
        report["rows"] = kept + (better or [dict(row)])
        _write(path, report)


def describe(path: Path, model: str, facts: Mapping[str, Any]) -> None:
    """Say how a model's rows were made."""
    with locked(path.parent, path.name, lambda: None):
        report = load(path)
        report["models"][model] = dict(facts)
        _write(path, report)


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEYS)


def _write(path: Path, report: Report) -> None:
    write_atomic(path, json.dumps(report, indent=1).encode())
