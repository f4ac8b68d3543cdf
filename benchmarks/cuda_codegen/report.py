"""Results as data: one entry for each denoiser, which later runs replace."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.cuda_codegen.compiling import CompiledGraph
from benchmarks.cuda_codegen.datasheets import PRICED
from benchmarks.cuda_codegen.models import Subject
from benchmarks.cuda_codegen.prices import Price, price, saving
from benchmarks.cuda_codegen.programs import Programs, StepProgram
from benchmarks.suite.machine import sources_digest, versions
from soda_compile.storage.files import write_atomic

Report = dict[str, Any]
FULL = "compute"


def read(path: Path) -> Report:
    """What earlier runs have left; an empty report where there is nothing."""
    found: Report = json.loads(path.read_text()) if path.exists() else {}
    return {"models": {}, "slots": [], "rewrites": [], "numerics": [], **found}


def write(path: Path, report: Report, text: str) -> None:
    """Write the report and its table."""
    write_atomic(path, (json.dumps(report, indent=1) + "\n").encode())
    write_atomic(path.with_suffix(".md"), text.encode())


def model_entry(subject: Subject, weight_bytes: int, programs: Programs, command: str) -> Report:
    """What is known of a denoiser before anything is compiled."""
    return {
        "title": subject.config.title,
        "batch": subject.config.batch,
        "steps": subject.steps,
        "branches": subject.branches,
        "weight_bytes": weight_bytes,
        "graphs": len(programs.graphs),
        "command": command,
        "versions": versions(),
        "sources": sources_digest(),
        "capabilities": {},
    }


def capability_entry(programs: Programs, graphs: Mapping[str, CompiledGraph]) -> Report:
    """What was compiled for one compute capability, and the price of each kind of step."""
    cubins = {cubin.key: cubin for graph in graphs.values() for cubin in graph.cubins}
    failures = {graph.name: graph.failure for graph in graphs.values() if graph.failure}
    full = _price(next(step for step in programs.steps if step.name == FULL), graphs)
    return {
        "generated_graphs": sum(not graph.failure for graph in graphs.values()),
        "graphs": sum(graph.assembled and not graph.failure for graph in graphs.values()),
        "failures": failures,
        "generated": sum(not kernel.library for graph in graphs.values() for kernel in graph.kernels),
        "cubins": len(cubins),
        "cubin_bytes": sum(cubin.cubin_bytes for cubin in cubins.values()),
        "most_registers": max((cubin.registers for cubin in cubins.values()), default=0),
        "spilling": [dataclasses.asdict(cubin) for cubin in cubins.values() if cubin.spill_bytes],
        "seconds": sum(graph.seconds for graph in graphs.values()),
        "steps": [_row(step, graphs, full) for step in programs.steps],
        "once": [_row(step, graphs, full) for step in programs.once],
    }


def _price(step: StepProgram, graphs: Mapping[str, CompiledGraph]) -> Price | None:
    return None if any(graphs[key].failure for key in step.calls) else price(step.calls, graphs)


def _row(step: StepProgram, graphs: Mapping[str, CompiledGraph], full: Price | None) -> Report:
    found = _price(step, graphs)
    row: Report = {"name": step.name, "flops": step.flops, "slot_bytes": step.slot_bytes}
    if found is None:
        return {**row, "failure": next(graphs[key].failure for key in step.calls if graphs[key].failure)}
    row["price"] = dataclasses.asdict(found)
    if full is not None:
        savings = {gpu.name: saving(found, full, gpu.name) for gpu in PRICED}
        row["savings"] = {
            name: {**dataclasses.asdict(each), "efficiency": each.efficiency} for name, each in savings.items()
        }
    return row
