"""Keeps sensitivity and plans in the user's cache directory, by what they were measured for."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel

from soda_compile.errors import PlanError, SensitivityError
from soda_compile.planner import Goal, Strategy
from soda_compile.plans.plan import Plan
from soda_compile.plans.sensitivity import Sensitivity
from soda_compile.storage.files import write_atomic
from soda_compile.storage.json_reader import read_json

log = logging.getLogger(__name__)

_VERSION = 1  # of the layout and of what a key means


class _SettingFile(BaseModel):
    measured: list[str]


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


@dataclass(frozen=True)
class PlanStore:
    """A folder with one subfolder for each setting.

    In it ``setting.json`` says what it is for and is written last: without it the measurement is not complete.
    """

    folder: Path

    def plans(self, setting: Setting, request: Request) -> dict[str, Plan] | None:
        """Return the plans stored for this request by component name, or None."""
        paths = {name: self._plan_path(setting, request, name) for name in self._measured(setting)}
        if not paths or not all(path.exists() for path in paths.values()):
            return None
        try:
            return {name: Plan.load(path) for name, path in paths.items()}
        except PlanError as error:
            log.warning("a stored plan is damaged and is made again: %s", error)
            return None

    def sensitivities(self, setting: Setting) -> dict[str, Sensitivity] | None:
        """Return what was measured for this setting by component name, or None."""
        try:
            found = {name: Sensitivity.load(self._table_path(setting, name)) for name in self._measured(setting)}
        except SensitivityError as error:
            log.warning("a stored measurement is damaged and is made again: %s", error)
            return None
        return found or None

    def save_sensitivities(self, setting: Setting, measured: Mapping[str, Sensitivity]) -> None:
        """Store a measurement, in place of an older one.

        Raises:
            OSError: The folder cannot be written.
        """
        folder = self.folder_of(setting)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "setting.json").unlink(missing_ok=True)
        for old in folder.glob("*.plan.json"):
            old.unlink()
        for name, sensitivity in measured.items():
            sensitivity.save(self._table_path(setting, name))
        described = {**asdict(setting), "measured": sorted(measured)}
        write_atomic(folder / "setting.json", json.dumps(described, indent=1).encode())

    def save_plans(self, setting: Setting, request: Request, plans: Mapping[str, Plan]) -> None:
        """Store the plans for a request beside the measurement.

        Raises:
            OSError: The folder cannot be written.
        """
        for name, plan in plans.items():
            plan.save(self._plan_path(setting, request, name))

    def folder_of(self, setting: Setting) -> Path:
        """Return the folder of a setting's files."""
        return self.folder / setting.key

    def _measured(self, setting: Setting) -> list[str]:
        try:
            text = (self.folder_of(setting) / "setting.json").read_bytes()
            return read_json(_SettingFile, text, SensitivityError, "calibrate again").measured
        except FileNotFoundError:
            return []
        except (OSError, SensitivityError) as error:
            log.warning("%s is damaged, so it is measured again: %s", self.folder_of(setting), error)
            return []

    def _table_path(self, setting: Setting, name: str) -> Path:
        return self.folder_of(setting) / f"{name}.sensitivity.safetensors"

    def _plan_path(self, setting: Setting, request: Request, name: str) -> Path:
        return self.folder_of(setting) / f"{name}.{request.name}.plan.json"
