"""The command ``calibrate``: measures a pipeline, and writes a folder that others can use."""

from pathlib import Path
from typing import Annotated

import typer

from soda_compile.acceleration.accelerate import accelerate
from soda_compile.acceleration.handle import restore
from soda_compile.acceleration.measurement_folder import MeasurementFolder
from soda_compile.acceleration.sharing import save_measurement
from soda_compile.cli.output import AsJson, print_json
from soda_compile.cli.pipeline_target import PIPELINE_FORMS, Setting, load_pipeline, with_settings
from soda_compile.cli.store import entry_of
from soda_compile.errors import OptionError


def calibrate(
    target: Annotated[str, typer.Argument(help=f"{PIPELINE_FORMS}.")],
    out: Annotated[Path, typer.Option(help="Folder for the measurement.")] = Path("soda-measurement"),
    speedup: Annotated[float, typer.Option(help="What the plan in the folder is for; others are made from it.")] = 2.0,
    generations: Annotated[int, typer.Option(min=1, help="How many to measure on.")] = 4,
    max_interval: Annotated[
        int | None,
        typer.Option(min=1, help="Longest time, in steps, that a value may be kept; ten or more, as needed."),
    ] = None,
    closest: Annotated[
        int | None, typer.Option(help="How many to try plans on; eight where that can be, 0 for none.", min=0)
    ] = None,
    verify: Annotated[int, typer.Option(min=0, help="Generations to run with and without the plan.")] = 0,
    argument: Setting = None,
    cache: Annotated[Path | None, typer.Option(help="Where it is kept as well; by default accelerate's.")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure anew, whatever is kept.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a pipeline, or look up what was measured, and write it with a plan and a card as a folder.

    A few ordinary generations are observed, and plans tried on a few more, as accelerate does it. The folder is what
    report, sample --measurement and accelerate(measurement=...) take, and a repository of the hub as it is.

    Example: `soda-compile calibrate path/to/pipeline --set num_inference_steps=28 --verify 2 --out measured`
    """
    if out.exists() and not out.is_dir():
        raise OptionError(f"{out} is no folder; name another one with --out")
    pipe, call = load_pipeline(target)
    settings = with_settings(call, argument or ())
    accelerate(
        pipe,
        speedup=speedup,
        calibrate_with=generations,
        max_interval=max_interval,
        closest=closest,
        verify=verify,
        cache=cache,
        refresh=refresh,
        **settings,
    )
    try:
        folder = save_measurement(pipe, out)
    finally:
        restore(pipe)
    if as_json:
        print_json({"measurement": entry_of(MeasurementFolder(out)), "wrote": [folder]})
    else:
        typer.echo(f"wrote {folder}; soda-compile report {out} shows it")
