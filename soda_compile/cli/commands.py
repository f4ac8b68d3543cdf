"""The commands of ``soda-compile``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from soda_compile.cli import planning
from soda_compile.cli.calibrating import calibrate
from soda_compile.cli.comparing import compare
from soda_compile.cli.errors import OneLineErrors
from soda_compile.cli.extras import needed
from soda_compile.cli.report import report
from soda_compile.cli.sampling import sample
from soda_compile.cli.store import store
from soda_compile.cli.target import FORMS, load_target
from soda_compile.compiler.why import why as region_notes
from soda_compile.ir.tree import render
from soda_compile.measure.inspection import inspect as inspect_model
from soda_compile.plans.plan import Plan

app = typer.Typer(cls=OneLineErrors, no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def main() -> None:
    """Plan and compile diffusion transformers: what need not be computed again at every step is not."""


@app.command()
def inspect(
    target: Annotated[str, typer.Argument(help=f"{FORMS}; returns the model and its inputs.")],
    why: Annotated[bool, typer.Option(help="Also say of each region what pruning it comes to, and why.")] = False,
) -> None:
    """Show the blocks and regions that the compiler finds in a model, and what it leaves alone."""
    found = load_target(target)
    structure = inspect_model(found.model, *found.args, **found.kwargs)
    typer.echo(render(structure, type(found.model).__name__, color=sys.stdout.isatty()))
    for note in region_notes(structure) if why else ():
        typer.echo(note)


app.command()(calibrate)
app.command()(planning.plan)
app.command()(planning.profile)
app.command()(sample)
app.command()(report)
app.command()(compare)
app.add_typer(store, name="store")


@app.command()
def show(plan: Annotated[Path, typer.Argument(help="A plan (.json).")]) -> None:
    """Show a plan: what every region does at every step."""
    loaded = Plan.load(plan)
    typer.echo(loaded.grid())
    made_for = [loaded.scheduler, None if loaded.guidance is None else f"guidance {loaded.guidance:g}"]
    facts = [*filter(None, made_for), *(f"{key} {value}" for key, value in loaded.method if value is not None)]
    if facts:
        typer.echo(f"made for and by: {', '.join(facts)}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the picture, the plans and the sensitivity.")] = Path(
        "soda-demo"
    ),
    samples: Annotated[int, typer.Option(min=1, help="Digits to draw, in one batch.")] = 64,
    generations: Annotated[int, typer.Option(min=1, help="Generations to calibrate on.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="How often each method is timed.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the digits that are compared.")] = 0,
    speedups: Annotated[tuple[float, float], typer.Option(help="Two speedups by FLOPs to plan for.")] = (2.0, 3.0),
) -> None:
    """Calibrate, plan and compile a small trained model of digits, and compare speed and samples, on the CPU."""
    with needed("the demo", "demo"):
        from soda_compile.demo.run import Settings, run
    run(Settings(out, samples, generations, rounds, seed, speedups))
