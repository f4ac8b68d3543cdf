"""The commands that look after stored measurements: ``store list``, ``store show`` and ``store remove``."""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from soda_compile.acceleration.measurement_folder import About, MeasurementFolder
from soda_compile.acceleration.plan_store import PlanStore
from soda_compile.acceleration.setting import shown
from soda_compile.cli.output import AsJson, print_json, print_table
from soda_compile.errors import OptionError, PlanError
from soda_compile.plans.plan import Plan
from soda_compile.storage.cache import cache_folder

Cache = Annotated[Path | None, typer.Option(help="The folder; by default that of accelerate.")]
Key = Annotated[str, typer.Argument(help="What store list calls it; its beginning is enough.")]

store = typer.Typer(no_args_is_help=True, help="Look after the measurements that accelerate keeps.")


@store.command("list")
def list_(cache: Cache = None, as_json: AsJson = False) -> None:
    """Show what is stored: setting, error where it was verified, size on disk, date."""
    place = _store(cache)
    found = [entry_of(folder) for folder in place.folders()]
    if as_json:
        print_json(found)
        return
    if not found:
        typer.echo(f"nothing is stored in {place.folder}")
        return
    columns = ("key", "pipeline", "steps", "size", "guidance", "error", "MB", "measured")
    table = Table(*columns, title=str(place.folder), title_justify="left")
    for entry in found:
        table.add_row(*_row(entry))
    print_table(table)


@store.command()
def show(key: Key, cache: Cache = None, as_json: AsJson = False) -> None:
    """Show one measurement: all that it was measured under, its plans and what they were seen to do."""
    folder = _named(key, _store(cache))
    entry = entry_of(folder)
    if as_json:
        print_json(entry)
        return
    table = Table("", "", title=str(folder.path), title_justify="left", show_header=False)
    for name, value in _facts(entry):
        table.add_row(name, value)
    print_table(table)


@store.command()
def remove(
    key: Key,
    cache: Cache = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a measurement with its plans; the setting is measured again when it is next accelerated."""
    folder = _named(key, _store(cache))
    entry = entry_of(folder)
    if not yes:
        about = f"{entry['pipeline']}, {entry['steps']} steps, {entry['date']}" if entry["readable"] else "unreadable"
        typer.confirm(f"Remove {folder.path} ({about}, {entry['bytes'] / 1e6:.1f} MB)?", abort=True, err=as_json)
    shutil.rmtree(folder.path)
    if as_json:
        print_json({"removed": entry["key"], "bytes": entry["bytes"]})
    else:
        typer.echo(f"removed {folder.path}")


def _store(cache: Path | None) -> PlanStore:
    return PlanStore(cache_folder() if cache is None else cache)


def _named(key: str, place: PlanStore) -> MeasurementFolder:
    found = [folder for folder in place.folders() if folder.path.name.startswith(key)]
    exact = [folder for folder in found if folder.path.name == key]
    if len(exact or found) != 1:
        what = "no measurement" if not found else f"{len(found)} measurements"
        raise OptionError(f"{what} in {place.folder} with a key that begins with {key!r}; see soda-compile store list")
    return (exact or found)[0]


def entry_of(folder: MeasurementFolder) -> dict[str, Any]:
    """Return all that is told of a folder, as JSON values."""
    entry: dict[str, Any] = {"key": folder.path.name, "bytes": folder.size_bytes(), "readable": False}
    about = folder.about()
    if about is None:
        return entry
    verified = [
        {"plan": each.request, "mean": each.mean, "worst": each.worst, "seeds": each.seeds}
        for each in folder.verified()
    ]
    values = about.model_dump(exclude={"format", "name", "measured"})
    return {**entry, "readable": True, **values, "plans": _plans(folder, about), "verified": verified}


def _plans(folder: MeasurementFolder, about: About) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in folder.plan_paths(about.name):
        try:
            plan = Plan.load(path)
        except PlanError:
            found.append({"file": path.name, "anchors": None, "flop_ratio": None})
            continue
        found.append({"file": path.name, "anchors": len(plan.anchors), "flop_ratio": plan.flop_ratio})
    return found


def _row(entry: dict[str, Any]) -> list[str]:
    size = f"{entry['bytes'] / 1e6:.1f}"
    if not entry["readable"]:
        return [entry["key"], "not readable, of an older version?", "", "", "", "", size, ""]
    call = entry["call"]
    sizes = [shown(call[name]) for name in ("height", "width", "num_frames") if name in call]
    guidance = [f"{shown(value)}" for name, value in call.items() if name in ("guidance_scale", "true_cfg_scale")]
    errors = [f"{each['mean']:.2%}" for each in entry["verified"]]
    named = entry["model"] or entry["pipeline"]
    return [
        entry["key"], named, str(entry["steps"]), " x ".join(sizes), ", ".join(guidance), ", ".join(errors), size,
        entry["date"][:10],
    ]  # fmt: skip


def _facts(entry: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [("key", entry["key"]), ("on disk", f"{entry['bytes'] / 1e6:.1f} MB")]
    if not entry["readable"]:
        return [*facts, ("", "cannot be read, as measurements of older versions; soda-compile store remove")]
    facts += [(name, str(entry[name])) for name in ("pipeline", "model", "scheduler", "steps", "date") if entry[name]]
    facts += [(f"weights of {name}", digest) for name, digest in entry["models"].items()]
    facts += [(name, shown(value)) for name, value in entry["call"].items()]
    facts += [("timesteps", " ".join(f"{timestep:g}" for timestep in entry["timesteps"]))]
    for plan in entry["plans"]:
        ratio = "" if plan["flop_ratio"] is None else f", {plan['flop_ratio']:.1%} of the FLOPs"
        damaged = plan["anchors"] is None
        facts.append((plan["file"], "damaged; made again" if damaged else f"{plan['anchors']} steps in full{ratio}"))
    for each in entry["verified"]:
        facts.append((f"error of {each['plan']}", f"{each['mean']:.2%} mean, {each['worst']:.2%} worst"))
    return facts
