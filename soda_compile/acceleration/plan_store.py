"""Keeps sensitivity and plans in the user's cache directory, by what they were measured for."""

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from soda_compile.errors import PlanError, SensitivityError
from soda_compile.planner import Goal, Strategy
from soda_compile.plans.plan import Plan
from soda_compile.plans.sensitivity import Sensitivity
from soda_compile.storage.cache import keep
from soda_compile.storage.files import write_atomic
from soda_compile.storage.json_reader import read_json

log = logging.getLogger(__name__)

SETTING = "setting.json"
_VERSION = 2  # of the layout and of what a key means


class _SettingFile(BaseModel):
    model_config = ConfigDict(strict=True)

    measured: list[str]
    name: str


@dataclass(frozen=True)
class Setting:
    """The setting that a measurement holds for.

    Attributes:
        pipeline: Class name, to read.
        models: Digests of the denoisers by component name.
        scheduler: Digest of the noise scheduler.
        steps: The pipeline's ``num_inference_steps``.
        guidance: Guidance scale; None where the pipeline takes none.
    """

    pipeline: str
    models: Mapping[str, str]
    scheduler: str
    steps: int
    guidance: float | None

    @property
    def key(self) -> str:
        """Short hash, the name of a folder."""
        text = json.dumps([_VERSION, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Request:
    """A goal, and the strategy by which plans shall reach it."""

    goal: Goal
    strategy: Strategy

    @property
    def name(self) -> str:
        """Readable, fit for a file name, and different for different requests."""
        numbers = "-".join(f"{key}-{value}" for key, value in self.goal.numbers().items())
        return f"{numbers}-{hashlib.sha256(repr(self).encode()).hexdigest()[:6]}"


@dataclass(frozen=True, eq=False)
class Measurement:
    """What was measured at one go, under the name that its files and those of its plans share.

    Attributes:
        name: The name, different for each measurement.
        sensitivities: By component name.
    """

    name: str
    sensitivities: Mapping[str, Sensitivity]


@dataclass(frozen=True)
class PlanStore:
    """A folder with one subfolder for each setting.

    In it ``setting.json`` says what it is for and which measurement holds, and is written last. Files of another
    measurement, which another process may just be writing, are as good as absent: nothing is ever read of two.
    """

    folder: Path

    def plans(self, setting: Setting, request: Request) -> dict[str, Plan] | None:
        """Return the plans stored for this request by component name, or None."""
        about = self._about(setting)
        paths = {name: self._plan_path(setting, request, about.name, name) for name in about.measured} if about else {}
        if not paths or not all(map(os.path.exists, paths.values())):
            return None
        try:
            return {name: Plan.load(path) for name, path in paths.items()}
        except PlanError as error:
            log.warning("a stored plan is damaged and is made again: %s", error)
            return None

    def measurement(self, setting: Setting) -> Measurement | None:
        """Return what was measured for this setting, or None."""
        about = self._about(setting)
        while about is not None:
            try:
                tables = {
                    name: Sensitivity.load(self._table_path(setting, about.name, name)) for name in about.measured
                }
                return Measurement(about.name, tables)
            except SensitivityError as error:
                former, about = about, self._about(setting)
                if about == former:  # else another process has just replaced it
                    log.warning("a stored measurement is damaged and is made again: %s", error)
                    return None
        return None

    def save_measurement(self, setting: Setting, sensitivities: Mapping[str, Sensitivity]) -> Measurement:
        """Store a measurement, in place of an older one; where the folder cannot be written, say so and go on."""
        made = Measurement(secrets.token_hex(4), sensitivities)
        folder = self.folder_of(setting)
        described = {**asdict(setting), "measured": sorted(sensitivities), "name": made.name}

        def save() -> None:
            folder.mkdir(exist_ok=True)
            for name, sensitivity in sensitivities.items():
                sensitivity.save(self._table_path(setting, made.name, name))
            former = self._about(setting)
            write_atomic(folder / SETTING, json.dumps(described, indent=1).encode())
            for old in folder.glob(f"*.{former.name}.*") if former else ():
                old.unlink(missing_ok=True)

        keep(self.folder, save)
        return made

    def save_plans(self, setting: Setting, request: Request, measurement: str, plans: Mapping[str, Plan]) -> None:
        """Store the plans that were made from a measurement; where the folder cannot be written, say so and go on."""

        def save() -> None:
            self.folder_of(setting).mkdir(exist_ok=True)
            for name, plan in plans.items():
                plan.save(self._plan_path(setting, request, measurement, name))

        keep(self.folder, save)

    def folder_of(self, setting: Setting) -> Path:
        """Return the folder of a setting's files."""
        return self.folder / setting.key

    def _about(self, setting: Setting) -> _SettingFile | None:
        path = self.folder_of(setting) / SETTING
        try:
            found = read_json(_SettingFile, path.read_bytes(), SensitivityError, "calibrate again", str(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, SensitivityError) as error:
            log.warning("a stored measurement cannot be read and is made again: %s", error)
            return None
        if set(found.measured) != set(setting.models):
            log.warning("%s is of the denoisers %s, so it is measured again", path, ", ".join(found.measured))
            return None
        return found

    def _table_path(self, setting: Setting, measurement: str, name: str) -> Path:
        return self.folder_of(setting) / f"{name}.{measurement}.sensitivity.safetensors"

    def _plan_path(self, setting: Setting, request: Request, measurement: str, name: str) -> Path:
        return self.folder_of(setting) / f"{name}.{measurement}.{request.name}.plan.json"
