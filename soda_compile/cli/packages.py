"""The commands that make, show and run packages."""

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from soda_compile.artifacts import export as export_package
from soda_compile.artifacts import load
from soda_compile.artifacts.description import describe
from soda_compile.artifacts.loading import open_package
from soda_compile.artifacts.timing import time_package
from soda_compile.cli.commands import app
from soda_compile.cli.target import FORMS, load_target

PackagePath = Annotated[Path, typer.Argument(help="A package (.soda.pt2).")]


@app.command()
def export(
    target: Annotated[str, typer.Argument(help=f"{FORMS}; returns the model and its inputs.")],
    plan: Annotated[Path, typer.Option(help="A plan (.json).")],
    out: Annotated[Path, typer.Option(help="Write the package here.")] = Path("denoiser.soda.pt2"),
    weights: Annotated[
        Literal["inside", "external"],
        typer.Option(help="Keep the weights in the package, or load them from elsewhere."),
    ] = "inside",
) -> None:
    """Compile a model by a plan, ahead of time, into one file."""
    found = load_target(target)
    example = found.kwargs if found.kwargs else found.args
    started = time.perf_counter()
    export_package(found.model, example, plan=plan, path=out, weights=weights)
    typer.echo(describe(open_package(out)))
    typer.echo(f"\nwrote {out} in {time.perf_counter() - started:.0f} s")


@app.command()
def info(package: PackagePath) -> None:
    """Verify a package and show what is inside: origin, sizes, shapes, plan. Loads no code."""
    typer.echo(describe(open_package(package)))


@app.command()
def run(
    package: PackagePath,
    weights: Annotated[Path | None, typer.Option(help="The checkpoint, where weights are external.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Trajectories to time.")] = 3,
) -> None:
    """Load a package and time whole trajectories on random inputs."""
    started = time.perf_counter()
    denoiser = load(package, weights=weights)
    typer.echo(f"loaded in {time.perf_counter() - started:.2f} s")
    for number, runner in enumerate(denoiser.runners):
        timing = time_package(denoiser, rounds, number)
        plan = denoiser.plan
        others = tuple(step for step in range(plan.steps) if step not in plan.anchors)
        kinds = {"an anchor step": plan.anchors, "another step": others}
        parts = [f"{1e3 * timing.steps(steps):.2f} ms {kind}" for kind, steps in kinds.items() if steps]
        shapes = ", ".join(f"{name} {entry.shape}" for name, entry in runner.call.arguments.items())
        typer.echo(f"{shapes}\n  {1e3 * timing.trajectory:.1f} ms for {plan.steps} steps: {', '.join(parts)}")
