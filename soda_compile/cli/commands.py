"""The commands of ``soda-compile``."""

from pathlib import Path
from typing import Annotated

import typer

from soda_compile.cli import planning
from soda_compile.cli.calibrating import calibrate
from soda_compile.cli.comparing import compare
from soda_compile.cli.errors import OneLineErrors
from soda_compile.cli.extras import needed
from soda_compile.cli.inspecting import inspect
from soda_compile.cli.output import AsJson, print_json
from soda_compile.cli.report import report
from soda_compile.cli.sampling import sample
from soda_compile.cli.store import store
from soda_compile.plans.plan import Plan

MEASURE, LOOK, PACKAGES = "Measure and plan", "Look", "Packages"  # how --help groups the commands

app = typer.Typer(cls=OneLineErrors, no_args_is_help=True, rich_markup_mode="markdown")


@app.callback()
def main() -> None:
    """Plan and compile diffusion transformers: what need not be computed again at every step is not.

    A target is module:function or path/to/file.py:function; calibrate and sample also take the folder of a diffusers
    pipeline. From a pipeline to pictures: calibrate, then sample with its measurement, then report.
    """


app.command(rich_help_panel=MEASURE)(inspect)
app.command(rich_help_panel=MEASURE)(calibrate)
app.command(rich_help_panel=MEASURE)(planning.profile)
app.command(rich_help_panel=MEASURE)(planning.plan)
app.command(rich_help_panel=LOOK)(sample)
app.command(rich_help_panel=LOOK)(report)
app.command(rich_help_panel=LOOK)(compare)
app.add_typer(store, name="store", rich_help_panel=LOOK)


@app.command(rich_help_panel=LOOK)
def show(plan: Annotated[Path, typer.Argument(help="A plan (.json).")], as_json: AsJson = False) -> None:
    """Show a plan: what every region does at every step.

    C computes, r takes the last output over, a number is the order of a forecast.

    Example: `soda-compile show plan.json`
    """
    loaded = Plan.load(plan)
    if as_json:
        print_json(loaded)
        return
    typer.echo(loaded.grid())
    made_for = [loaded.scheduler, None if loaded.guidance is None else f"guidance {loaded.guidance:g}"]
    facts = [*filter(None, made_for), *(f"{key} {value}" for key, value in loaded.method if value is not None)]
    if facts:
        typer.echo(f"made for and by: {', '.join(facts)}")


@app.command(rich_help_panel=LOOK)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the picture, the plans and the sensitivity.")] = Path(
        "soda-demo"
    ),
    samples: Annotated[int, typer.Option(min=1, help="Digits to draw, in one batch.")] = 64,
    generations: Annotated[int, typer.Option(min=1, help="Generations to calibrate on.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="How often each method is timed.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the digits that are compared.")] = 0,
    speedups: Annotated[tuple[float, float], typer.Option(help="Two speedups by FLOPs to plan for.")] = (2.0, 3.0),
    as_json: AsJson = False,
) -> None:
    """Calibrate, plan and compile a small trained model of digits, and compare speed and samples, on the CPU."""
    with needed("the demo", "demo"):
        from soda_compile.demo.run import Settings, run
    outcome = run(Settings(out, samples, generations, rounds, seed, speedups))
    if as_json:
        print_json(outcome.as_json())
    else:
        outcome.show()
