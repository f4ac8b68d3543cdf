"""Statistics of models, compiled models, pipelines and packages, for people and for metrics."""

from collections.abc import Mapping
from io import StringIO
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table

from soda_compile.acceleration.prometheus import prometheus_text
from soda_compile.integrations.base import denoisers_of, framework_of
from soda_compile.plans.actions import Kind
from soda_compile.runtime.drift import joined
from soda_compile.runtime.statistics import ModelStatistics, recorded
from soda_compile.torch_internals.wrapped_tensors import flatten_inputs


class Stats(dict[str, Any]):
    """Statistics by denoiser, as plain values; printed as a table."""

    def __str__(self) -> str:
        console = Console(file=StringIO(), width=120, record=True)
        self._print(console)
        return console.export_text().rstrip()

    def _repr_html_(self) -> str:
        """Return the table, for notebooks."""
        console = Console(file=StringIO(), width=120, record=True)
        self._print(console)
        return console.export_html(inline_styles=True, code_format='<pre style="line-height: 1.1">{code}</pre>')

    def prometheus(self) -> str:
        """Return them in the text format that Prometheus scrapes, for a server's page of metrics.

        Counters end in ``_total``; the label ``denoiser`` names the component. Single generations are left out.
        """
        return prometheus_text(self)

    def _print(self, console: Console) -> None:
        table = Table(title="Denoiser calls", title_justify="left")
        for column in ("denoiser", "generation", "by plan", *get_args(Kind), "without plan", "guarded", "drift"):
            table.add_column(column, justify="left" if column == "denoiser" else "right")
        for name, each in self.items():
            for number, tally in each["generations"].items():
                table.add_row(name, str(number), *_cells(tally))
            table.add_section()
            table.add_row(name, "all", *_cells(each))
        console.print(table)
        for name, each in self.items():
            console.print(
                f"{name}: slots {each['slot_bytes'] / 1e6:.1f} MB now, {each['slot_bytes_peak'] / 1e6:.1f} MB at most; "
                f"{each['compilations']} graphs compiled in {each['compile_seconds']:.1f} s"
            )
            for kind, reason in each["reasons"].items():
                console.print(f"{name}: {kind}: {reason.splitlines()[0]}", markup=False, highlight=False)


def _cells(tally: Mapping[str, Any]) -> list[str]:
    counts = [
        tally["calls"],
        *(tally["regions"].get(kind, 0) for kind in get_args(Kind)),
        sum(tally["misses"].values()),
        tally["guarded"],
    ]
    return [*map(str, counts), _drift(tally["drift"])]


def _drift(drift: Mapping[str, Any]) -> str:
    """Return the mean and the worst ratio, or the mean error where nothing is expected."""
    if drift["ratio"] is not None:
        return f"{drift['ratio']:.2f}x, at most {drift['worst_ratio']:.2f}x"
    return f"{drift['error']:.1%}" if drift["error"] is not None else ""


def stats(model: Any) -> Stats:
    """Return what the generations of a model did since the process began.

    Args:
        model: A denoiser, compiled or not, a loaded package, or a pipeline.

    Returns:
        By denoiser (``model`` where it is no pipeline's): ``calls`` that followed the plan, ``regions`` by what they
        did in these calls, ``misses``: calls without the plan by kind, with ``reasons``; memory of kept values now
        and at most, ``slot_bytes`` and ``slot_bytes_peak``; ``compilations`` and ``compile_seconds``. ``guarded``
        counts calls that computed everything because of the option ``guard``, and ``drift`` says how far forecasts were
        off where they can be compared, at anchors: ``error`` is the mean relative error of so many ``readings``,
        ``ratio`` how many times what the calibration expects that is on average, with ``last_ratio`` and
        ``worst_ratio``; None where the plan does not say what is expected. The newest ``generations`` are there by
        number, with calls, regions, misses, guarded and drift of their own. Printed, it is a table.

    Raises:
        OptionError: If it is neither.
    """
    found = {}
    for name, module in denoisers_of(getattr(model, "_orig_mod", model), framework_of(model)).items():
        found[name] = _of(module)
    return Stats(found)


def _of(module: torch.nn.Module) -> dict[str, Any]:
    owned: list[Any] = [*module.parameters(), *module.buffers()]
    total: dict[str, Any] = {}
    for each in recorded(flatten_inputs(owned)):
        total = _sum(total, each.as_dict()) if total else each.as_dict()
    return total or ModelStatistics().as_dict()


def _sum(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Add up the statistics of graphs of one model that know it by different parameters."""
    total = {**other, **one}
    for key in one.keys() & other.keys():
        if key == "drift":
            total[key] = joined(one[key], other[key])
        elif isinstance(one[key], dict):
            total[key] = _sum(one[key], other[key])
        elif not isinstance(one[key], str):
            total[key] = one[key] + other[key]
    return total
