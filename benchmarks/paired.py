"""How far plans are off on the same samples, and the files that results of several models share."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from soda_compile.measure.gram import Floats
from soda_compile.storage.files import write_atomic


def spread(error: Floats) -> dict[str, float]:
    """Return the mean and the 95th percentile of relative errors, float64 [samples]."""
    return {"relative_l2_mean": float(error.mean()), "relative_l2_p95": float(np.quantile(error, 0.95))}


def paired_ratio(error: Floats, to: Floats) -> tuple[float, float]:
    """Return the geometric mean of the ratios of the same samples, and its standard error."""
    logs = np.log(error / to)
    ratio = float(np.exp(logs.mean()))
    return ratio, ratio * float(logs.std()) / len(logs) ** 0.5


def load(out: Path) -> dict[str, Any]:
    """Return the results in a JSON file by model; none where there is no file."""
    report: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    return report


def keep(out: Path, model: str, found: Mapping[str, Any], text: Callable[[Mapping[str, Any]], str]) -> None:
    """Write what was found for a model into a JSON file, beside other models' results, and the table of all."""
    report = {**load(out), model: found}
    write_atomic(out, json.dumps(report, indent=1).encode())
    write_atomic(out.with_suffix(".md"), text(report).encode())
