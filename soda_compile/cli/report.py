"""The command ``report``: what was measured and planned, as a page or a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from soda_compile.acceleration.measurement_folder import MeasurementFolder, Verified
from soda_compile.cli.extras import needed
from soda_compile.cli.output import AsJson, print_json
from soda_compile.errors import OptionError, PlanError
from soda_compile.plans.plan import Plan
from soda_compile.plans.profile import Profile
from soda_compile.plans.sensitivity import Sensitivity
from soda_compile.storage.files import write_atomic

if TYPE_CHECKING:
    from soda_compile.report.subject import Subject

FORMS = (".html", ".png")


def report(
    measured: Annotated[
        Path, typer.Argument(help="What calibrate measured (.safetensors), or the folder of a measurement.")
    ],
    plan: Annotated[Path | None, typer.Argument(help="A plan made from it (.json).")] = None,
    out: Annotated[Path, typer.Option(help=f"Where to write it: {' or '.join(FORMS)}.")] = Path("report.html"),
    component: Annotated[str | None, typer.Option(help="Which denoiser of a folder's, where it has several.")] = None,
    profile: Annotated[Path | None, typer.Option(help="Measured costs (.json); see soda-compile profile.")] = None,
    original: Annotated[Path | None, typer.Option(help="Samples without the plan: a picture or a folder.")] = None,
    accelerated: Annotated[Path | None, typer.Option(help="The same samples with it, of equal names.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the sensitivity, the plan, its error and its cost on one page that needs nothing else, or as a picture.

    Example: `soda-compile report measured --original samples/original --accelerated samples/accelerated`
    """
    if out.suffix not in FORMS:
        raise OptionError(f"--out is {out}; end it with {' or '.join(FORMS)}")
    if not out.parent.is_dir():
        raise OptionError(f"cannot write {out}: there is no folder {out.parent}")
    if (original is None) != (accelerated is None):
        raise OptionError("give --original and --accelerated, or neither: samples are compared in pairs")
    subject = _subject(measured, plan, component, profile, original, accelerated)
    from soda_compile.report.page import page, picture

    write_atomic(out, page(subject).encode() if out.suffix == ".html" else picture(subject))
    if as_json:
        plan_digest = None if subject.plan is None else subject.plan.digest
        print_json({"model": subject.sensitivity.info.fingerprint, "plan": plan_digest, "wrote": [out]})
    else:
        typer.echo(f"wrote {out}")


def _subject(
    measured: Path,
    plan: Path | None,
    component: str | None,
    profile: Path | None,
    original: Path | None,
    accelerated: Path | None,
) -> "Subject":
    with needed("a report", "plot"):
        from soda_compile.report.subject import Subject, read_pairs
    verified: tuple[tuple[Plan, Verified], ...] = ()
    if measured.is_dir():
        sensitivity, verified = _of_folder(measured, component)
    else:
        if component is not None:
            raise OptionError(f"--component is {component}, but {measured} is no folder; leave it out")
        sensitivity = Sensitivity.load(measured)
    return Subject(
        sensitivity,
        plan=Plan.load(plan) if plan is not None else verified[0][0] if verified else None,
        profile=None if profile is None else Profile.load(profile),
        verified=verified,
        pairs=read_pairs(original, accelerated) if original is not None and accelerated is not None else (),
    )


def _of_folder(path: Path, component: str | None) -> tuple[Sensitivity, tuple[tuple[Plan, Verified], ...]]:
    folder = MeasurementFolder(path)
    found = folder.measurement()
    if found is None:
        raise OptionError(f"{path} holds no measurement; give what save_measurement wrote, or a .safetensors file")
    names = sorted(found.sensitivities)
    chosen = names[0] if component is None and len(names) == 1 else component
    if chosen not in names:
        raise OptionError(f"{path} is of the denoisers {', '.join(names)}; choose one with --component")
    return found.sensitivities[chosen], tuple(_verified(folder, found.name, chosen))


def _verified(folder: MeasurementFolder, measurement: str, component: str) -> list[tuple[Plan, Verified]]:
    """Return the records of plans that can still be read."""
    plans = {path.name: path for path in folder.plan_paths(measurement)}
    found = []
    for each in folder.verified():
        path = plans.get(f"{component}.{measurement}.{each.request}.plan.json")
        try:
            if path is not None:
                found.append((Plan.load(path), each))
        except PlanError:
            continue
    return found
