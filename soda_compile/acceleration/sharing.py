"""Measurements that travel: saved from one pipeline as a folder, and used by another from a folder or the hub."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from soda_compile.acceleration.handle import HANDLE
from soda_compile.acceleration.measurement_card import card, picture
from soda_compile.acceleration.measurement_folder import CARD, FIGURE, SETTING, Measurement, MeasurementFolder, Request
from soda_compile.acceleration.present_setting import PresentSetting
from soda_compile.acceleration.searched_plans import SearchedPlans
from soda_compile.errors import OptionError
from soda_compile.plans.plan import Plan
from soda_compile.storage.files import write_atomic
from soda_compile.storage.hub import named_folder

_FILES = (SETTING, CARD, FIGURE, "*.safetensors", "*.json")


def save_measurement(pipe: Any, folder: str | os.PathLike[str]) -> Path:
    """Write what an accelerated pipeline was measured by as a small folder that others can use, or the hub can keep.

    For example::

        soda_compile.accelerate(pipe, speedup=2.0, num_inference_steps=28, verify=2)
        soda_compile.save_measurement(pipe, "sd3-28-steps")

    and elsewhere ``soda_compile.accelerate(pipe, measurement="sd3-28-steps", speedup=2.0)``, or, after
    ``hf upload owner/name sd3-28-steps``, ``measurement="owner/name"``. In the folder are the tables of
    each denoiser, the plans for the speedup at hand, ``setting.json``, and a card with a picture where matplotlib is
    installed. A measurement that lies there already is replaced in one go.

    Args:
        pipe: A pipeline that ``accelerate`` measured, or found a measurement for: the one that it took last.
        folder: Where to.

    Returns:
        The folder.

    Raises:
        OptionError: If the pipeline follows no measurement, or the folder holds something else.
        OSError: The folder cannot be written.
    """
    source = getattr(getattr(pipe, HANDLE, None), "plans_for", None)
    if not isinstance(source, SearchedPlans):
        raise OptionError(
            f"this {type(pipe).__name__} follows no measurement; call soda_compile.accelerate(pipe, speedup=...) first"
        )
    measured = source.latest
    if measured is None:
        raise OptionError(
            f"this {type(pipe).__name__} has taken no plan of a measurement yet; run one generation, then save"
        )
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise OptionError(f"{path} is no folder; name another one")
    if path.is_dir() and any(path.iterdir()) and not (path / SETTING).is_file():
        raise OptionError(f"{path} holds other files than a measurement; name an empty folder, or a new one")
    _write(MeasurementFolder(path), source, measured)
    return path


def _write(folder: MeasurementFolder, source: SearchedPlans, measured: Measurement) -> None:
    tried = source.tried_of(measured)
    plans = tried or source.plan(measured)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.save_plans(source.request if tried else source.request.untried, measured.name, plans)
    verified = source.all_verified(measured)
    for each in verified:
        folder.save_verified(measured.name, each)
    folder.save(measured)  # from here on it is this one's folder
    image = picture(plans)
    if image is None:
        (folder.path / FIGURE).unlink(missing_ok=True)
    else:
        write_atomic(folder.path / FIGURE, image)
    text = card(measured, plans, verified, pictured=image is not None)
    write_atomic(folder.path / CARD, text.encode())


def load_measurement(
    place: str | os.PathLike[str], present: PresentSetting, request: Request
) -> tuple[Measurement, Mapping[str, Plan] | None]:
    """Return the measurement in a folder, or in a repository of the hub, for denoisers of these architectures.

    Args:
        place: A folder, ``owner/name`` or ``owner/name@revision``.
        present: Knows the denoisers.
        request: For which plans are wanted.

    Returns:
        The measurement, and those of its plans that were tried for the request, on any number of generations.

    Raises:
        OptionError: If there is nothing, it cannot be read, or it is of another architecture.
    """
    folder = MeasurementFolder(named_folder(os.fspath(place), _FILES, "measurement"))
    measured = folder.measurement()
    if measured is None:
        raise OptionError(
            f"measurement {os.fspath(place)!r}: {folder.path} holds no measurement that can be read (see the log); "
            "soda_compile.save_measurement(pipe, folder) writes one"
        )
    architectures = present.architectures()
    if measured.setting.models.keys() != architectures.keys():
        raise OptionError(
            f"measurement {os.fspath(place)!r} is of {', '.join(measured.setting.models)}, but this pipeline has "
            f"{', '.join(architectures)}; leave measurement out to measure this one"
        )
    others = [name for name, digest in architectures.items() if measured.setting.architectures[name] != digest]
    if others:
        raise OptionError(
            f"measurement {os.fspath(place)!r} is of another architecture than pipe.{others[0]} "
            f"(it was measured on {measured.model or measured.setting.pipeline}); leave measurement out to measure "
            "this one"
        )
    return measured, folder.tried_plans(replace(request, tried=1)) if request.tried else None
