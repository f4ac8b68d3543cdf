"""Keeps measurements and plans in the user's cache directory, by what they were measured for."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from soda_compile.acceleration.measurement_folder import SETTING, Measurement, MeasurementFolder, Request, Verified
from soda_compile.acceleration.setting import Setting
from soda_compile.plans.plan import Plan
from soda_compile.plans.sensitivity import Sensitivity
from soda_compile.storage.cache import keep

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanStore:
    """A folder with one subfolder for each setting."""

    folder: Path

    def plans(self, setting: Setting, request: Request) -> dict[str, Plan] | None:
        """Return the plans stored for this request by component name, or None."""
        folder = self._measured(setting)
        return None if folder is None else folder.plans(request)

    def tried_plans(self, setting: Setting, request: Request) -> dict[str, Plan] | None:
        """Return the plans that were tried for this request on as many generations, or more; None if there are none."""
        folder = self._measured(setting)
        return None if folder is None else folder.tried_plans(request)

    def measurement(self, setting: Setting) -> Measurement | None:
        """Return what was measured for this setting, or None."""
        folder = self._measured(setting)
        return None if folder is None else folder.measurement()

    def save_measurement(
        self, setting: Setting, sensitivities: Mapping[str, Sensitivity], model: str | None = None
    ) -> Measurement:
        """Store a measurement, in place of an older one; where the folder cannot be written, say so and go on."""
        made = Measurement(setting, sensitivities, model)
        keep(self.folder, lambda: MeasurementFolder(self.folder_of(setting)).save(made))
        return made

    def save_plans(self, setting: Setting, request: Request, measurement: str, plans: Mapping[str, Plan]) -> None:
        """Store the plans that were made from a measurement; where the folder cannot be written, say so and go on."""
        keep(self.folder, lambda: MeasurementFolder(self.folder_of(setting)).save_plans(request, measurement, plans))

    def save_verified(self, setting: Setting, measurement: str, verified: Verified) -> None:
        """Record what plans were seen to do; where the folder cannot be written, say so and go on."""
        keep(self.folder, lambda: MeasurementFolder(self.folder_of(setting)).save_verified(measurement, verified))

    def verified(self, measured: Measurement) -> list[Verified]:
        """Return what is recorded of the plans of a measurement, if it is the one that holds."""
        folder = MeasurementFolder(self.folder_of(measured.setting))
        about = folder.about()
        return folder.verified() if about is not None and about.name == measured.name else []

    def folders(self) -> Iterator[MeasurementFolder]:
        """Yield all folders of measurements, readable or not, in the order of their names."""
        if self.folder.is_dir():
            for path in sorted(self.folder.iterdir()):
                if (path / SETTING).is_file():
                    yield MeasurementFolder(path)

    def measured_like(self, setting: Setting) -> Iterator[tuple[MeasurementFolder, Setting]]:
        """Yield what was measured for the same pipeline with denoisers of the same architecture, and under what."""
        for folder in self.folders():
            about = folder.about()
            if about is not None and same_kind(about.setting, setting):
                yield folder, about.setting

    def folder_of(self, setting: Setting) -> Path:
        """Return the folder of a setting's files."""
        return self.folder / setting.key

    def _measured(self, setting: Setting) -> MeasurementFolder | None:
        folder = MeasurementFolder(self.folder_of(setting))
        about = folder.about()
        if about is None:
            return None
        if about.setting.key != setting.key:
            log.warning("%s was measured for %s, which is not what its name stands for", folder.path, about.setting)
            return None
        return folder


def same_kind(one: Setting, other: Setting) -> bool:
    """Return whether two settings are of one pipeline with denoisers of the same architectures."""
    return one.pipeline == other.pipeline and dict(one.architectures) == dict(other.architectures)
