"""The command ``inspect``: the blocks and regions of a model."""

import sys
from typing import Annotated, Any

import typer

from soda_compile.cli.output import AsJson, print_json
from soda_compile.cli.target import FORMS, load_target
from soda_compile.compiler.why import why as region_notes
from soda_compile.ir.structure import Note, Structure
from soda_compile.ir.tree import render
from soda_compile.measure.inspection import inspect as inspect_model


def inspect(
    target: Annotated[str, typer.Argument(help=f"{FORMS}; returns the model and its inputs.")],
    why: Annotated[bool, typer.Option(help="Also say of each region what pruning it comes to, and why.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the blocks and regions that the compiler finds in a model, and what it leaves alone.

    Equal blocks share a line; FLOPs are those of one call. Nothing is compiled.

    Example: `soda-compile inspect soda_compile.digits.example:example --why`
    """
    found = load_target(target)
    structure, name = inspect_model(found.model, *found.args, **found.kwargs), type(found.model).__name__
    pruning = region_notes(structure) if why else ()
    if as_json:
        print_json({"model": name, **_entry(structure), "pruning": pruning})
        return
    typer.echo(render(structure, name, color=sys.stdout.isatty()))
    for note in pruning:
        typer.echo(note)


def _entry(structure: Structure) -> dict[str, Any]:
    regions = zip(structure.region_names, structure.regions, strict=True)
    notes: dict[Note, None] = dict.fromkeys(note for call in structure.calls for note in call.block.notes)
    return {
        "fingerprint": structure.fingerprint,
        "flops": structure.flops,
        "blocks": [call.name for call in structure.calls],
        "regions": [
            {"name": name, "kind": region.kind, "flops": region.flops, "memory_bytes": region.memory_bytes}
            for name, region in regions
        ],
        "left_alone": [*notes, *structure.notes],
    }
