"""The commands that make, show and run packages."""

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from soda_compile.cli.commands import PACKAGES, app
from soda_compile.cli.output import AsJson, print_json
from soda_compile.cli.target import FORMS, load_target
from soda_compile.errors import OptionError
from soda_compile.packages.arguments import flatten
from soda_compile.packages.description import describe
from soda_compile.packages.exporting import export as export_package
from soda_compile.packages.loading import Package, load, open_package
from soda_compile.packages.manifest import ProgramEntry
from soda_compile.packages.spaces import batch_shapes
from soda_compile.packages.timing import time_package
from soda_compile.packages.trace import ExampleInputs, bind_example

PackagePath = Annotated[Path, typer.Argument(help="A package (.soda.pt2).")]


@app.command(rich_help_panel=PACKAGES)
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
    as_json: AsJson = False,
) -> None:
    """Compile a model by a plan, ahead of time, into one file.

    soda_compile.load runs it without compiling and without the model's class, on a machine of the same kind.

    Example: `soda-compile export soda_compile.digits.example:example --plan plan.json --batch 2:8`
    """
    found = load_target(target)
    example = found.kwargs if found.kwargs else found.args
    shapes = _batch_shapes(found.model, example, batch) if batch else None
    started = time.perf_counter()
    export_package(found.model, example, plan=plan, path=out, weights=weights, dynamic_shapes=shapes)
    seconds = time.perf_counter() - started
    if as_json:
        print_json({**_entry(open_package(out)), "seconds": seconds, "wrote": [out]})
    else:
        typer.echo(f"{describe(open_package(out))}\n\nwrote {out} in {seconds:.0f} s")


@app.command(rich_help_panel=PACKAGES)
def info(package: PackagePath, as_json: AsJson = False) -> None:
    """Verify a package and show what is inside: origin, sizes, shapes, plan. Loads no code.

    Example: `soda-compile info denoiser.soda.pt2`
    """
    opened = open_package(package)
    if as_json:
        print_json(_entry(opened))
    else:
        typer.echo(describe(opened))


@app.command(rich_help_panel=PACKAGES)
def run(
    package: PackagePath,
    weights: Annotated[Path | None, typer.Option(help="The checkpoint, where weights are external.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Trajectories to time.")] = 3,
    size: Annotated[
        list[str] | None,
        typer.Option(help="A dynamic size, as batch=4; the smallest by default."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Load a package and time whole trajectories on random inputs. It runs native code: trust where it comes from.

    Example: `soda-compile run denoiser.soda.pt2 --size batch=4`
    """
    wanted = _sizes(size or [])
    started = time.perf_counter()
    denoiser = load(package, weights=weights)
    loaded_s = time.perf_counter() - started
    plan = denoiser.plan
    programs = [program for program in denoiser.programs if _fits(program.entry, wanted)]
    if not programs:
        raise OptionError(f"no program of {package} is for {', '.join(size or [])}; soda-compile info shows the sizes")
    others = tuple(step for step in range(plan.steps) if step not in plan.anchors)
    kinds = {"an anchor step": plan.anchors, "another step": others}
    found: list[dict[str, Any]] = []
    for program in programs:
        values = {name: wanted.get(name, dim.low) for name, dim in program.entry.dims.items()}
        timing = time_package(denoiser, program, rounds, values)
        found.append(
            {
                "shapes": {name: entry.shape_at(values) for name, entry in program.call.arguments.items()},
                "trajectory_s": timing.trajectory,
                "step_s": {kind: timing.steps(steps) for kind, steps in kinds.items() if steps},
            }
        )
    if as_json:
        print_json({"loaded_s": loaded_s, "steps": plan.steps, "programs": found})
        return
    typer.echo(f"loaded in {loaded_s:.2f} s")
    for each in found:
        parts = ", ".join(f"{1e3 * seconds:.2f} ms {kind}" for kind, seconds in each["step_s"].items())
        typer.echo(", ".join(f"{name} {shape}" for name, shape in each["shapes"].items()))
        typer.echo(f"  {1e3 * each['trajectory_s']:.1f} ms for {plan.steps} steps: {parts}")


def _entry(package: Package) -> dict[str, Any]:
    manifest = package.manifest
    return {
        **manifest.model_dump(include={"format", "environment", "model", "scheduler", "weights_inside"}),
        "plan": package.plan,
        "programs": [
            {
                "inputs": {name: str(entry) for name, entry in program.call.arguments.items()},
                "sizes": {name: str(dim) for name, dim in program.dims.items()},
            }
            for program in package.programs
        ],
        "weights": len(manifest.weights),
        "subgraphs": len(package.subgraphs),
        "bytes": package.path.stat().st_size,
    }


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
