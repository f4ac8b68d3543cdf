"""What the compiler's own rewrites save: the same steps with one of them left out."""

import os
from collections.abc import Callable
from typing import Any
from unittest import mock

from benchmarks.cuda_codegen.capturing import deep_structure
from benchmarks.cuda_codegen.compiling import compile_graphs
from benchmarks.cuda_codegen.datasheets import PRICED
from benchmarks.cuda_codegen.models import Subject
from benchmarks.cuda_codegen.prices import price
from benchmarks.cuda_codegen.programs import programs_of
from soda_compile.passes.observers import SKIP

KINDS = ("reuse", "forecast 1", "prune half")
Counts = dict[str, dict[str, float]]


def rewrite_rows(subject: Subject, rewrites: tuple[str, ...], told: Callable[[str], None]) -> list[dict[str, Any]]:
    """Count steps of a denoiser with all rewrites, and with each of some left out; one row for each step and rewrite.

    Kernels stay sources: counting takes no cubins.
    """
    after = counts(subject, None, told)
    return [
        {"title": subject.config.title, "rewrite": rewrite, "step": step, "before": found, "after": after[step]}
        for rewrite in rewrites
        for step, found in counts(subject, rewrite, told).items()
        if found != after[step]
    ]


def counts(subject: Subject, without: str | None, told: Callable[[str], None]) -> Counts:
    """Return launches, bytes and the main board's roofline in microseconds of steps, by their names."""
    with mock.patch.dict(os.environ, {SKIP: without} if without else {}):
        programs = programs_of(deep_structure(subject.config), subject.steps, KINDS)
        graphs = compile_graphs(programs.graphs, 90, told, seconds=0)
    found = {step.name: price(step.calls, graphs) for step in programs.steps}
    return {
        name: {
            "launches": each.launches,
            "read_bytes": each.read_bytes,
            "written_bytes": each.written_bytes,
            "roofline_us": each.roofline_us[PRICED[0].name],
        }
        for name, each in found.items()
    }
