"""The measurement that serves where there is none of the present setting: the nearest one, with a note."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from soda_compile.acceleration.measurement_folder import Measurement, MeasurementFolder, Request
from soda_compile.acceleration.plan_store import PlanStore
from soda_compile.acceleration.setting import Difference, Setting, differences, remoteness, same_timesteps, shown
from soda_compile.errors import SensitivityError
from soda_compile.integrations.diffusers.derive import derive_for
from soda_compile.integrations.diffusers.scheduler_hook import SchedulerHook

_GIVEN = "the measurement given"


@dataclass(frozen=True, eq=False)
class Near:
    """A measurement of another setting than the present one.

    Attributes:
        measured: Its setting.
        differences: In what that differs from the present one.
        load: Reads it; SensitivityError if it cannot be read.
        where: Where it lies, to tell.
    """

    measured: Setting
    differences: list[Difference]
    load: Callable[[], Measurement]
    where: str

    @property
    def kinds(self) -> tuple[str, ...]:
        """What differs, without how much."""
        return tuple(f"{each.kind} {each.name}" for each in self.differences)

    @property
    def part_differs(self) -> bool:
        """Whether another part of the schedule may be run, as with another strength: sizes and guidance move none."""
        return any(each.kind == "argument" for each in self.differences)


def nearest_first(present: Setting, given: Measurement | None, store: PlanStore) -> list[Near]:
    """Return measurements of the same pipeline and architecture, the nearest first; see ``remoteness``.

    Args:
        present: The setting that was not measured.
        given: The measurement that the user named; then it is the only one.
        store: Where the others are.
    """
    if given is not None:
        named = given
        return [Near(given.setting, differences(given.setting, present), lambda: named, _GIVEN)]
    found = [
        Near(measured, differences(measured, present), _loading(folder), str(folder.path))
        for folder, measured in store.measured_like(present)
    ]
    return sorted(found, key=lambda near: remoteness(near.differences))


def _loading(folder: MeasurementFolder) -> Callable[[], Measurement]:
    def load() -> Measurement:
        measured = folder.measurement()
        if measured is None:
            raise SensitivityError(f"{folder.path} cannot be read; soda-compile store remove {folder.path.name}")
        return measured

    return load


def derived(measured: Measurement, present: Setting, hook: SchedulerHook) -> tuple[Measurement, Mapping[str, Any]]:
    """Return a measurement with its tables for the present timesteps, and by component name what that lost.

    Raises:
        SensitivityError: The schedules are too far apart.
    """
    if same_timesteps(measured.setting, present) and measured.setting.scheduler == present.scheduler:
        return measured, {}
    positional, named = hook.arguments
    made = {
        name: derive_for(sensitivity, hook.scheduler, positional, named)
        for name, sensitivity in measured.sensitivities.items()
    }
    tables = {name: each.sensitivity for name, each in made.items()}
    return replace(measured, sensitivities=tables), {name: each.loss for name, each in made.items()}


def note(near: Near, present: Setting, request: Request, loss: Mapping[str, Any]) -> str:
    """Return what to tell of a measurement that serves for another setting: what differs, and how to measure."""
    goal = ", ".join(f"{name}={value:g}" for name, value in request.goal.numbers().items())
    text = f"nothing was measured for this setting, so the nearest measurement serves ({near.where}): "
    text += "; ".join(each.text for each in near.differences)
    text += "".join(f"; the tables of pipe.{name} are derived: {each}" for name, each in loss.items())
    text += f". To measure exactly: soda_compile.restore(pipe) and soda_compile.accelerate(pipe, {goal}, "
    text += f"num_inference_steps={present.steps}"
    call = [each for each in near.differences if each.name in present.call]
    if call:
        options = ", ".join(f"{each.name!r}: {shown(present.call[each.name])}" for each in call)
        text += f", pipeline_options={{{options}}}"
    text += ", ...)" + (" without measurement=" if near.where == _GIVEN else "")
    if call:
        text += ", or those in calibrate_with where it names them"
    if any(each.kind == "timesteps" for each in near.differences):
        text += ", with the sigmas or timesteps of this call in pipeline_options"
    return text
