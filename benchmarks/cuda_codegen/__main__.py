"""The commands: ``compile`` denoisers, ``slots``, ``rewrites``, ``numerics``; each adds to one report."""

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cuda_codegen import report as reports
from benchmarks.cuda_codegen.models import SUBJECTS
from benchmarks.cuda_codegen.small import SMALL
from benchmarks.cuda_codegen.table import markdown

app = typer.Typer(add_completion=False, help=__doc__)
OUT = Path("benchmarks/results/cuda_codegen.json")


@app.command("compile")
def compile_models(
    models: Annotated[str, typer.Option(help="Names, with commas.")] = ",".join(SUBJECTS),
    capabilities: Annotated[str, typer.Option(help="Compute capabilities, with commas; the first is priced.")] = "90",
    layers: Annotated[float, typer.Option(help="Share of the layers, at true width.")] = 1.0,
    kinds: Annotated[str, typer.Option(help="Kinds of steps, with semicolons; all by default.")] = "",
    seconds: Annotated[float, typer.Option(help="Time for cubins; what is left is generated and counted.")] = math.inf,
    out: Path = OUT,
) -> None:
    """Compile every kind of step of denoisers of true size, and count."""
    from benchmarks.cuda_codegen.capturing import deep_structure
    from benchmarks.cuda_codegen.compiling import compile_graphs
    from benchmarks.cuda_codegen.programs import programs_of

    for name in models.split(","):
        subject = SUBJECTS[name].with_layers(layers)
        structure = deep_structure(subject.config)
        programs = programs_of(structure, subject.steps, tuple(filter(None, kinds.split(";"))))
        entry = reports.model_entry(subject, structure.weight_bytes, programs, _command())
        for capability in map(int, capabilities.split(",")):
            graphs = compile_graphs(programs.graphs, capability, _tell, seconds)
            entry["capabilities"][str(capability)] = reports.capability_entry(programs, graphs)
            _add(out, name, entry)


@app.command()
def slots(models: str = ",".join([*SUBJECTS, "wan720p"]), out: Path = OUT) -> None:
    """Memory of kept values by policy; nothing is compiled."""
    from benchmarks.cuda_codegen.slot_memory import slot_memory

    for name in models.split(","):
        found = slot_memory(name)
        report = reports.read(out)
        report["slots"] = [row for row in report["slots"] if row["name"] != name] + found
        reports.write(out, report, markdown(report))


@app.command()
def rewrites(
    models: str = ",".join(SUBJECTS),
    names: Annotated[str, typer.Option(help="Optional passes, with commas.")] = "rejoin_slices",
    out: Path = OUT,
) -> None:
    """Count steps without some of the compiler's rewrites, and with them; no cubins are made."""
    from benchmarks.cuda_codegen.rewrites import rewrite_rows

    for name in models.split(","):
        found = rewrite_rows(SUBJECTS[name], tuple(names.split(",")), _tell)
        report = reports.read(out)
        others = [row for row in report["rewrites"] if row["title"] != SUBJECTS[name].config.title]
        report["rewrites"] = others + found
        reports.write(out, report, markdown(report))


@app.command()
def numerics(models: str = ",".join(SMALL), out: Path = OUT) -> None:
    """Interpret the generated kernels of small denoisers, and compare; needs TRITON_INTERPRET=1."""
    from benchmarks.cuda_codegen.numerics import model_numerics, require_interpreter

    require_interpreter()
    for name in models.split(","):
        found = model_numerics(name, _tell)
        report = reports.read(out)
        report["numerics"] = [row for row in report["numerics"] if row["name"] != name] + [found]
        reports.write(out, report, markdown(report))


@app.command()
def table(out: Path = OUT) -> None:
    """Write the table of a report again."""
    report = reports.read(out)
    reports.write(out, report, markdown(report))


def _add(out: Path, name: str, entry: reports.Report) -> None:
    report = reports.read(out)
    report["models"][name] = entry
    reports.write(out, report, markdown(report))


def _command() -> str:
    given = sys.argv[1:]
    if "--out" in given:  # where it was written says nothing about what was run
        place = given.index("--out")
        given = given[:place] + given[place + 2 :]
    return " ".join(["python -m benchmarks.cuda_codegen", *given])


def _tell(text: str) -> None:
    typer.echo(text, err=True)


app()
