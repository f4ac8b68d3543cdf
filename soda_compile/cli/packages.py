"""The commands that make, show and run packages."""

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from soda_compile.cli.commands import app
from soda_compile.cli.target import FORMS, load_target
from soda_compile.errors import OptionError
from soda_compile.packages.arguments import flatten
from soda_compile.packages.description import describe
from soda_compile.packages.exporting import export as export_package
from soda_compile.packages.loading import load, open_package
from soda_compile.packages.manifest import ProgramEntry
from soda_compile.packages.spaces import batch_shapes
from soda_compile.packages.timing import time_package
from soda_compile.packages.trace import ExampleInputs, bind_example

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
    batch: Annotated[
        str | None,
        typer.Option(help="For any batch from A to B, as A:B; what has the example's batch as its first size varies."),
    ] = None,
) -> None:
    """Compile a model by a plan, ahead of time, into one file."""
    found = load_target(target)
    example = found.kwargs if found.kwargs else found.args
    shapes = _batch_shapes(found.model, example, batch) if batch else None
    started = time.perf_counter()
    export_package(found.model, example, plan=plan, path=out, weights=weights, dynamic_shapes=shapes)
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
    size: Annotated[
        list[str] | None,
        typer.Option(help="A dynamic size, as batch=4; the smallest by default."),
    ] = None,
) -> None:
    """Load a package and time whole trajectories on random inputs."""
    wanted = _sizes(size or [])
    started = time.perf_counter()
    denoiser = load(package, weights=weights)
    typer.echo(f"loaded in {time.perf_counter() - started:.2f} s")
    plan = denoiser.plan
    programs = [program for program in denoiser.programs if _fits(program.entry, wanted)]
    if not programs:
        raise OptionError(f"no program of {package} is for {', '.join(size or [])}; soda-compile info shows the sizes")
    for program in programs:
        values = {name: wanted.get(name, dim.low) for name, dim in program.entry.dims.items()}
        timing = time_package(denoiser, program, rounds, values)
        others = tuple(step for step in range(plan.steps) if step not in plan.anchors)
        kinds = {"an anchor step": plan.anchors, "another step": others}
        parts = [f"{1e3 * timing.steps(steps):.2f} ms {kind}" for kind, steps in kinds.items() if steps]
        shapes = ", ".join(f"{name} {entry.shape_at(values)}" for name, entry in program.call.arguments.items())
        typer.echo(f"{shapes}\n  {1e3 * timing.trajectory:.1f} ms for {plan.steps} steps: {', '.join(parts)}")


def _batch_shapes(model: torch.nn.Module, example: ExampleInputs, text: str) -> dict[str, Any]:
    low, colon, high = text.partition(":")
    if not (colon and low.isdigit() and high.isdigit()):
        raise OptionError(f"--batch {text!r} is no range; write 1:8")
    return batch_shapes(flatten(bind_example(model, example).arguments), int(low), int(high))


def _sizes(texts: list[str]) -> dict[str, int]:
    sizes = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value.isdigit()):
            raise OptionError(f"--size {text!r} is no size; write batch=4")
        sizes[name] = int(value)
    return sizes


def _fits(entry: ProgramEntry, wanted: dict[str, int]) -> bool:
    """Return whether a program is for these sizes."""
    return all(name in entry.dims and entry.dims[name].allows(size) for name, size in wanted.items())
