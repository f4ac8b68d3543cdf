"""The command ``sample``: pictures of a pipeline without a plan and with it."""

import statistics
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from soda_compile.acceleration.pictures import Image, psnr_db, relative_error
from soda_compile.acceleration.sampling import Sampled, sample_both
from soda_compile.cli.output import AsJson, print_json, print_table
from soda_compile.cli.pipeline_target import PIPELINE_FORMS, Setting, load_pipeline, with_settings
from soda_compile.errors import OptionError
from soda_compile.storage.files import write_atomic

ORIGINAL, ACCELERATED = "original", "accelerated"


def sample(
    target: Annotated[str, typer.Argument(help=f"{PIPELINE_FORMS}.")],
    speedup: Annotated[float | None, typer.Option(help="Measure, or look up, and plan for this speedup.")] = None,
    plan: Annotated[Path | None, typer.Option(help="A plan (.json), in place of --speedup.")] = None,
    measurement: Annotated[str | None, typer.Option(help="With --speedup: a measurement's folder or name.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many samples.")] = 4,
    first_seed: Annotated[int, typer.Option(min=0, help="The seed of the first.")] = 0,
    argument: Setting = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("soda-samples"),
    as_json: AsJson = False,
) -> None:
    """Draw samples without a plan and with it, save both, and say what they differ by and how long they took.

    Both start from the same noise. Times are of whole generations and leave out compilation; without the plan the
    denoiser is compiled by Inductor alone.

    Example: `soda-compile sample path/to/pipeline --set num_inference_steps=28 --speedup 2 --out samples`
    """
    if (speedup is None) == (plan is None):
        raise OptionError("give either --speedup or --plan")
    if plan is not None and measurement is not None:
        raise OptionError("--measurement is what a plan is made from; give it with --speedup")
    pipe, call = load_pipeline(target)
    measured = with_settings(call, argument or ())
    settings = {"plan": plan} if plan is not None else {"speedup": speedup, "measurement": measurement, **measured}
    found = sample_both(pipe, call, range(first_seed, first_seed + seeds), settings)
    _save(out, found)
    ratio = statistics.median(each.original_s for each in found) / statistics.median(e.accelerated_s for e in found)
    if as_json:
        folders = [out / ORIGINAL, out / ACCELERATED]
        print_json({"samples": [_entry(each) for each in found], "speedup": ratio, "wrote": folders})
        return
    print_table(_table(found))
    typer.echo(f"{ratio:.2f} times as fast as torch.compile, medians of whole generations one after the other")
    typer.echo(f"wrote {out / ORIGINAL} and {out / ACCELERATED}")


def _save(out: Path, found: Sequence[Sampled]) -> None:
    for name in (ORIGINAL, ACCELERATED):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for each in found:
            write_atomic(folder / f"{each.seed}.png", _png(getattr(each, name)))


def _png(image: Image) -> bytes:
    from PIL.Image import fromarray

    buffer = BytesIO()
    fromarray((image.clip(0, 1) * 255).round().astype(np.uint8)).save(buffer, format="png")
    return buffer.getvalue()


def _table(found: Sequence[Sampled]) -> Table:
    columns = ("seed", "rel. L2", "PSNR, dB", "torch.compile, s", "by the plan, s")
    table = Table(*columns, title="Samples", title_justify="left")
    for each in found:
        apart, psnr = relative_error(each.original, each.accelerated), psnr_db(each.original, each.accelerated)
        times = (f"{seconds:.2f}" for seconds in (each.original_s, each.accelerated_s))
        table.add_row(str(each.seed), f"{apart:.2%}", f"{psnr:.1f}", *times)
    return table


def _entry(each: Sampled) -> dict[str, Any]:
    return {
        "seed": each.seed,
        "relative_error": relative_error(each.original, each.accelerated),
        "psnr_db": psnr_db(each.original, each.accelerated),
        "original_s": each.original_s,
        "accelerated_s": each.accelerated_s,
    }
