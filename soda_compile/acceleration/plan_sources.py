"""Sources of plans: the user's, or those stored for the pipeline's present setting."""

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from soda_compile.acceleration.plan_store import Measurement, PlanStore, Request, Setting
from soda_compile.errors import PlanError, SensitivityError
from soda_compile.integrations.diffusers.calibration_runs import CalibrateWith, calibration_runs
from soda_compile.integrations.diffusers.denoisers import model_digest, signature
from soda_compile.integrations.diffusers.schedule_fit import require_scheduler
from soda_compile.integrations.diffusers.scheduler_hook import scheduler_digest
from soda_compile.measure.calibration import calibrate_denoisers
from soda_compile.planner import plan as make_plan
from soda_compile.plans.plan import Plan
from soda_compile.plans.sensitivity import Sensitivity

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class GivenPlans:
    """The same plans for every generation."""

    plans: Mapping[str, Plan]

    def __call__(self, scheduler: Any) -> Mapping[str, Plan]:
        """Return the plans.

        Raises:
            PlanError: They were made for another scheduler.
        """
        for plan in self.plans.values():
            require_scheduler(plan, scheduler)
        return self.plans


@dataclass(eq=False)
class SearchedPlans:
    """Plans by what was measured for the pipeline's model, scheduler, steps and guidance.

    Attributes:
        pipe: The pipeline.
        denoisers: Its denoisers by component name.
        request: What the plans shall reach.
        store: Where measurements and plans are kept.
        guidance: Guidance scale where the pipeline does not tell.
        max_interval: Longest time, in steps, that a measurement must cover.
    """

    pipe: Any
    denoisers: Mapping[str, torch.nn.Module]
    request: Request
    store: PlanStore
    guidance: float | None
    max_interval: int
    _digests: dict[str, str] = field(default_factory=dict)  # of models, by name and cheap signature
    _found: dict[str, Mapping[str, Plan]] = field(default_factory=dict)  # by key of the setting
    _first: frozenset[str] = frozenset()  # digests of the models when this was made

    def __post_init__(self) -> None:
        self._first = frozenset(self._digest(name, module) for name, module in self.denoisers.items())

    def __call__(self, scheduler: Any) -> Mapping[str, Plan]:
        """Return the plans for the scheduler as it is set now.

        Raises:
            PlanError: Nothing was measured for its number of steps.
        """
        setting = self.present(scheduler)
        usual = replace(setting, guidance=self.guidance)
        plans = self.stored(setting)
        if plans is None and (plans := self.stored(usual)) is not None:
            log.warning("no plan was measured at guidance %s; using the one for %s", setting.guidance, self.guidance)
            self._found[setting.key] = plans
        if plans is None:
            raise PlanError(self._nothing(setting))
        return plans

    def present(self, scheduler: Any) -> Setting:
        """Return the setting of a generation that begins."""
        steps = getattr(scheduler, "num_inference_steps", None) or len(scheduler.timesteps)
        scale = getattr(self.pipe, "_guidance_scale", None)
        return self.setting(steps, scale if isinstance(scale, int | float) else self.guidance)

    def _nothing(self, setting: Setting) -> str:
        changed = [name for name, digest in setting.models.items() if digest not in self._first]
        return (
            f"no plan is stored for {setting.pipeline} at {setting.steps} steps ({self.store.folder_of(setting)})"
            + (f"; the weights of pipe.{changed[0]} are not those at accelerate (a LoRA?)" if changed else "")
            + "; to measure one call soda_compile.restore(pipe) and "
            f"accelerate(pipe, num_inference_steps={setting.steps}, ...). With the former settings the pipeline runs "
            "as before"
        )

    def setting(self, steps: int, guidance: float | None) -> Setting:
        """Return the present setting of the pipeline."""
        models = {name: self._digest(name, module) for name, module in self.denoisers.items()}
        digest = scheduler_digest(self.pipe.scheduler)
        scale = None if guidance is None else float(guidance)
        return Setting(type(self.pipe).__name__, models, digest, int(steps), scale)

    def _digest(self, name: str, module: torch.nn.Module) -> str:
        cheap = f"{name} {signature(module)}"
        if cheap not in self._digests:
            self._digests[cheap] = model_digest(module)
        return self._digests[cheap]

    def stored(self, setting: Setting) -> Mapping[str, Plan] | None:
        """Return the plans stored for a setting: made for this request, or a measurement to make it from."""
        if setting.key not in self._found:
            plans: Mapping[str, Plan] | None = self.store.plans(setting, self.request)
            if plans is None:
                measured = self.store.measurement(setting)
                if measured is None or _longest_interval(measured) < self.max_interval:
                    return None
                plans = self._plan(setting, measured)
            self._keep(setting, plans, "stored")
        return self._found[setting.key]

    def measure(self, setting: Setting, calibrate_with: CalibrateWith, options: Mapping[str, Any]) -> None:
        """Run generations, and store what was measured and the plans."""
        generate, generations = calibration_runs(self.pipe, calibrate_with, options)
        _say(f"measuring {setting.pipeline} for {setting.steps} steps in {generations} generations, key {setting.key}")
        measured = calibrate_denoisers(
            self.pipe, generate, generations=generations, guidance=setting.guidance, max_interval=self.max_interval
        )
        ran = getattr(self.pipe.scheduler, "num_inference_steps", None) or setting.steps
        if ran != setting.steps:
            setting = replace(setting, steps=int(ran))
            _say(f"calibrate_with ran {ran} steps; pass num_inference_steps={ran} so that this is found next time")
        self.add(setting, measured)

    def add(self, setting: Setting, measured: Mapping[str, Sensitivity]) -> None:
        """Store what was measured for a setting, and the plans.

        Raises:
            SensitivityError: A denoiser was never called.
            PlanError: No plan can be made of it.
        """
        self._require_all(measured)
        stored = self.store.save_measurement(setting, measured)
        self._keep(setting, self._plan(setting, stored), "new")

    def _require_all(self, measured: Mapping[str, Sensitivity]) -> None:
        missing = [name for name in self.denoisers if name not in measured]
        if missing:
            raise SensitivityError(
                f"pipe.{missing[0]} was never called while measuring, so there is no plan for it; use settings under "
                "which every denoiser has a part, or take it out of the pipeline"
            )

    def _plan(self, setting: Setting, measured: Measurement) -> dict[str, Plan]:
        plans = {}
        for name, sensitivity in measured.sensitivities.items():
            try:
                plan = make_plan(sensitivity, self.request.goal, self.request.strategy)
            except PlanError as error:
                raise PlanError(f"pipe.{name}: {error}") from None
            where = {key: int(sensitivity.info.notes[key]) for key in _PLACE if key in sensitivity.info.notes}
            plans[name] = replace(plan, method=tuple({**dict(plan.method), **where}.items()))
        self.store.save_plans(setting, self.request, measured.name, plans)
        return plans

    def _keep(self, setting: Setting, plans: Mapping[str, Plan], kind: str) -> None:
        self._found[setting.key] = plans
        ratios = [plan.flop_ratio for plan in plans.values() if plan.flop_ratio is not None]
        flops = f", {100 * sum(ratios) / len(ratios):.0f}% of the FLOPs" if ratios else ""
        folder = self.store.folder_of(setting)
        _say(f"{kind} plan for {setting.steps} steps{flops}" + (f", in {folder}" if os.path.exists(folder) else ""))


def _longest_interval(measured: Measurement) -> int:
    return min(each.info.max_interval for each in measured.sensitivities.values())


_PLACE = ("first_step", "schedule_steps")


def _say(text: str) -> None:
    print(f"soda: {text}", file=sys.stderr)
