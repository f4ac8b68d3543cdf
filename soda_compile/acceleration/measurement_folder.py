"""One measurement as a folder: its setting, its tables, the plans that were made of it, and what they were seen to do.

``setting.json`` says what it is for and which measurement holds, and is written last. Files of another measurement,
which another process may just be writing, are as good as absent: nothing is ever read of two.
"""

import functools
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from soda_compile.acceleration.setting import Setting
from soda_compile.errors import PlanError, SensitivityError
from soda_compile.integrations.diffusers.pipeline_call import Value
from soda_compile.planner import Goal, Strategy
from soda_compile.plans.plan import Plan
from soda_compile.plans.sensitivity import Sensitivity
from soda_compile.storage.files import write_atomic
from soda_compile.storage.json_reader import read_json

log = logging.getLogger(__name__)

SETTING, CARD, FIGURE = "setting.json", "README.md", "plan.png"
FORMAT = "soda-measurement/3"  # version 2 and before name none
_PLANS = "watched regions"
"""What plans have held since: a stored plan from before is as good as none, and is made again from its measurement."""

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class About(BaseModel):
    """What ``setting.json`` holds."""

    model_config = ConfigDict(strict=True)

    format: Literal["soda-measurement/3"]
    name: FileName
    measured: list[FileName]
    date: str
    model: str | None = None
    pipeline: str
    models: dict[str, str]
    architectures: dict[str, str]
    scheduler: str
    steps: int
    timesteps: list[float]
    call: dict[str, bool | float | list[float]]

    @property
    def setting(self) -> Setting:
        """What the measurement is for."""
        call: dict[str, Value] = {}
        for name, value in self.call.items():
            call[name] = tuple(value) if isinstance(value, list) else value
        return Setting(
            self.pipeline, self.models, self.architectures, self.scheduler, self.steps, tuple(self.timesteps), call
        )


@dataclass(frozen=True)
class Request:
    """A goal, and how plans shall reach it.

    Attributes:
        goal: Numbers to reach.
        strategy: How to plan.
        tried: Number of generations that plans of this and other strategies are tried on; 0 for none.
    """

    goal: Goal
    strategy: Strategy
    tried: int = field(default=0, repr=False)

    @property
    def untried(self) -> "Request":
        """The same for plans that are made of the measurement alone."""
        return replace(self, tried=0)

    @property
    def name(self) -> str:
        """Readable, fit for a file name, and different for different requests."""
        return self._named(str(self.tried) if self.tried else None)

    @property
    def tried_names(self) -> str:
        """A glob pattern of the names that this request has for any number of generations that plans are tried on."""
        return self._named("*")

    def _named(self, tried: str | None) -> str:
        numbers = "-".join(f"{key}-{value}" for key, value in self.goal.numbers().items())
        numbers += f"-tried-{tried}" if tried else ""
        return f"{numbers}-{hashlib.sha256(f'{self!r}, {_PLANS}'.encode()).hexdigest()[:6]}"


@dataclass(frozen=True, eq=False)
class Measurement:
    """What was measured at one go, under the name that its files and those of its plans share.

    Attributes:
        setting: What it is for.
        sensitivities: By component name.
        model: The model's name on the hub, where it is known.
        name: Different for each measurement.
        date: When, in UTC, as ISO 8601 writes it.
    """

    setting: Setting
    sensitivities: Mapping[str, Sensitivity]
    model: str | None = None
    name: str = field(default_factory=lambda: secrets.token_hex(4))
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def longest_interval(self) -> int:
        """Longest time, in steps, that all of it covers."""
        return min(each.info.max_interval for each in self.sensitivities.values())


@dataclass(frozen=True)
class Verified:
    """How far generations by a plan were from those without it.

    Attributes:
        request: Name of the request that the plan is for.
        seeds: Those of the generations.
        errors: Of each generation, norm of the difference of the last samples / norm of the original's.
    """

    request: str
    seeds: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the errors."""
        return sum(self.errors) / len(self.errors)

    @property
    def worst(self) -> float:
        """Largest of the errors."""
        return max(self.errors)

    def __str__(self) -> str:
        seeds = ", ".join(map(str, self.seeds))
        return f"relative error {self.mean:.2%} on average, {self.worst:.2%} at worst (seeds {seeds})"


@dataclass(frozen=True)
class MeasurementFolder:
    """A folder that holds one measurement, or will."""

    path: Path

    def about(self) -> About | None:
        """Return what ``setting.json`` says; None, with a line in the log, where it cannot be read."""
        path = self.path / SETTING
        try:
            found = read_json(About, path.read_bytes(), SensitivityError, _ADVICE, str(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, SensitivityError) as error:
            _tell(_old(path) or f"a stored measurement cannot be read and is left alone: {error}")
            return None
        if set(found.measured) != set(found.models) or found.models.keys() != found.architectures.keys():
            _tell(
                f"{path} is of the denoisers {', '.join(found.measured)}, but for {', '.join(found.models)}; left alone"
            )
            return None
        return found

    def measurement(self) -> Measurement | None:
        """Return what was measured; None, with a line in the log, where it cannot be read."""
        about = self.about()
        while about is not None:
            try:
                tables = {name: Sensitivity.load(self._table_path(about.name, name)) for name in about.measured}
                return Measurement(about.setting, tables, about.model, about.name, about.date)
            except SensitivityError as error:
                former, about = about, self.about()
                if about == former:  # else another process has just replaced it
                    log.warning("a stored measurement is damaged and is made again: %s", error)
                    return None
        return None

    def plans(self, request: Request) -> dict[str, Plan] | None:
        """Return the plans for this request by component name, or None."""
        about = self.about()
        paths = {name: self._plan_path(request, about.name, name) for name in about.measured} if about else {}
        if not paths or not all(map(os.path.exists, paths.values())):
            return None
        try:
            return {name: Plan.load(path) for name, path in paths.items()}
        except PlanError as error:
            log.warning("a stored plan is damaged and is made again: %s", error)
            return None

    def tried_plans(self, request: Request) -> dict[str, Plan] | None:
        """Return the plans for this request that were tried on the most generations, and on as many as it says."""
        about = self.about()
        found = self.path.glob(f"*.{about.name}.{request.tried_names}.plan.json") if about else ()
        counts = {int(path.name.rpartition("-tried-")[2].partition("-")[0]) for path in found}
        enough = [count for count in counts if count >= request.tried]
        return self.plans(replace(request, tried=max(enough))) if enough else None

    def verified(self) -> list[Verified]:
        """Return what is recorded of plans that were run."""
        about = self.about()
        found = []
        for path in sorted(self.path.glob(f"{about.name}.*.verified.json")) if about else ():
            try:
                found.append(read_json(Verified, path.read_bytes(), SensitivityError, "verify again", str(path)))
            except (OSError, SensitivityError) as error:
                log.warning("a record of errors cannot be read: %s", error)
        return found

    def save(self, made: Measurement) -> None:
        """Write a measurement in place of an older one.

        Raises:
            OSError: The folder cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for name, sensitivity in made.sensitivities.items():
            sensitivity.save(self._table_path(made.name, name))
        former = self.about()
        about: dict[str, Any] = {"format": FORMAT, "name": made.name, "date": made.date, "model": made.model}
        about |= {"measured": sorted(made.sensitivities), **asdict(made.setting)}
        write_atomic(self.path / SETTING, json.dumps(about, indent=1).encode())
        for old in self._files(former.name) if former and former.name != made.name else ():
            old.unlink(missing_ok=True)

    def save_plans(self, request: Request, measurement: str, plans: Mapping[str, Plan]) -> None:
        """Write the plans that were made from a measurement.

        Raises:
            OSError: The folder cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for name, plan in plans.items():
            plan.save(self._plan_path(request, measurement, name))

    def save_verified(self, measurement: str, verified: Verified) -> None:
        """Record how far generations by a plan were from those without it.

        Raises:
            OSError: The folder cannot be written.
        """
        path = self.path / f"{measurement}.{verified.request}.verified.json"
        write_atomic(path, json.dumps(asdict(verified), indent=1).encode())

    def size_bytes(self) -> int:
        """Return what all files take on disk."""
        return sum(path.stat().st_size for path in self.path.iterdir() if path.is_file())

    def plan_paths(self, measurement: str) -> list[Path]:
        """Return the files of all plans that were made from a measurement."""
        return sorted(self.path.glob(f"*.{measurement}.*.plan.json"))

    def _files(self, measurement: str) -> list[Path]:
        return [*self.path.glob(f"*.{measurement}.*"), *self.path.glob(f"{measurement}.*")]

    def _table_path(self, measurement: str, name: str) -> Path:
        return self.path / f"{name}.{measurement}.sensitivity.safetensors"

    def _plan_path(self, request: Request, measurement: str, name: str) -> Path:
        return self.path / f"{name}.{measurement}.{request.name}.plan.json"


@functools.cache
def _tell(message: str) -> None:
    """Log what is wrong with a folder, once: it is looked at for every new setting."""
    log.warning("%s", message)


def _old(path: Path) -> str | None:
    """Return what to tell of a measurement of version 2 or before, the same for a whole store; None if it is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or "format" in found or not {"name", "measured", "models"} <= found.keys():
        return None
    return (
        f"{path.parent.parent} holds measurements of version 2 or before, which do not say all that they were measured "
        "under; they are left alone. soda-compile store list shows them, and store remove KEY removes them"
    )


_ADVICE = "what is there may be removed (soda-compile store remove), and the setting is measured again"
