"""Measurements of models that are no pipeline's, in the store that pipelines use too."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from soda_compile.acceleration.measurement_folder import MeasurementFolder, Request
from soda_compile.acceleration.plan_store import PlanStore
from soda_compile.acceleration.say import say
from soda_compile.acceleration.setting import Setting
from soda_compile.errors import PlanError
from soda_compile.integrations.diffusers.denoisers import digest_of, sampled_values
from soda_compile.learning.lesson import Lesson
from soda_compile.learning.schedule import Schedule
from soda_compile.learning.wish import Wish
from soda_compile.planner import plan
from soda_compile.plans.plan import Plan
from soda_compile.plans.sensitivity import Sensitivity
from soda_compile.torch_internals.wrapped_tensors import flatten_inputs

log = logging.getLogger(__name__)

PIPELINE, MODEL, CALLS = "torch.compile", "model", "calls_per_step"


@dataclass(frozen=True)
class Stored:
    """What is stored for one model.

    Attributes:
        store: Where.
        weights: Hash of some values of its weights.
        architecture: Hash of their shapes and types.
    """

    store: PlanStore
    weights: str
    architecture: str

    @classmethod
    def of(cls, wish: Wish, weights: Sequence[torch.Tensor]) -> "Stored":
        """Return what is stored for the model with these weights."""
        shapes = repr([(tuple(value.shape), str(value.dtype)) for value in weights])
        values = [shapes, *sampled_values(flatten_inputs(list(weights)))]
        return cls(PlanStore(wish.cache), digest_of(values), digest_of([shapes]))

    def lessons(self, wish: Wish) -> list[Lesson]:
        """Return the schedules that plans are stored for, or can be made for, the newest measurement first."""
        found = []
        for folder in self.store.folders():
            about = folder.about()
            if about is not None and (about.pipeline, about.models) == (PIPELINE, {MODEL: self.weights}):
                found.append((about.date, about.setting, folder))
        lessons = []
        for _, setting, folder in sorted(found, key=lambda entry: entry[0], reverse=True):
            made = self._plan(setting, folder, wish.request)
            if made is not None:
                say(f"stored plan for {made.steps} steps, in {folder.path}")
                lessons.append(Lesson.known(Schedule(made.steps, made.calls_per_step, setting.timesteps), made))
        return lessons

    def _plan(self, setting: Setting, folder: MeasurementFolder, request: Request) -> Plan | None:
        """Return the plan that is stored, or made now; None where times must be measured first, or none reaches it."""
        plans = self.store.plans(setting, request)
        if plans:
            return plans.get(MODEL)
        measured = folder.measurement()
        if measured is None or request.goal.latency_ms is not None:
            return None
        try:
            made = plan(measured.sensitivities[MODEL], request.goal, request.strategy)
        except PlanError as error:
            log.warning("what is stored in %s does not serve: %s", folder.path, error)
            return None
        self.store.save_plans(setting, request, measured.name, {MODEL: made})
        return made

    def save(self, request: Request, schedule: Schedule, sensitivity: Sensitivity, made: Plan) -> str:
        """Store what was measured, and the plan; return where, as words, or nothing where it cannot be written."""
        setting = Setting(
            pipeline=PIPELINE,
            models={MODEL: self.weights},
            architectures={MODEL: self.architecture},
            scheduler="",
            steps=schedule.steps,
            timesteps=schedule.timesteps,
            call={CALLS: float(schedule.calls_per_step)},
        )
        measured = self.store.save_measurement(setting, {MODEL: sensitivity})
        self.store.save_plans(setting, request, measured.name, {MODEL: made})
        folder = self.store.folder_of(setting)
        return f", in {folder}" if folder.exists() else ""
