"""Plans for what was measured at the pipeline's present setting, or near it."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from soda_compile.acceleration.measurement_folder import Measurement, Request, Verified
from soda_compile.acceleration.nearest import Near, derived, nearest_first, note
from soda_compile.acceleration.plan_store import PlanStore
from soda_compile.acceleration.present_setting import PresentSetting
from soda_compile.acceleration.say import say
from soda_compile.acceleration.setting import Setting
from soda_compile.errors import PlanError, SensitivityError
from soda_compile.integrations.diffusers.denoisers import model_name
from soda_compile.integrations.diffusers.schedule_fit import first_step
from soda_compile.integrations.diffusers.scheduler_hook import SchedulerHook, timesteps_of
from soda_compile.planner import plan as make_plan
from soda_compile.planner.change import TOO_MUCH, least_change
from soda_compile.plans.plan import Plan
from soda_compile.plans.resume import within
from soda_compile.plans.sensitivity import Sensitivity

log = logging.getLogger(__name__)


@dataclass(eq=False)
class SearchedPlans:
    """Plans by what was measured for the setting of each generation, or for the nearest setting.

    Attributes:
        present: Tells the setting of a generation that begins.
        request: What the plans shall reach.
        store: Where measurements and plans are kept.
        max_interval: Longest time, in steps, that a measurement must cover; None for what the request needs.
        given: The measurement that the user named; it goes before all that is stored.
        given_plans: Plans for the request that came with it, if any did.
        nearest: Whether a measurement of another setting serves where there is none of the present one.
        latest: The measurement that plans were last taken from.
        exact: Whether it is of the setting of the generation that they were taken for.
        verified: What its plans for the request were seen to do.
    """

    present: PresentSetting
    request: Request
    store: PlanStore
    max_interval: int | None = None
    given: Measurement | None = None
    given_plans: Mapping[str, Plan] | None = None
    nearest: bool = True
    latest: Measurement | None = None
    exact: bool = False
    verified: Verified | None = None
    _found: dict[str, Mapping[str, Plan]] = field(default_factory=dict)  # by key of the setting
    _made: dict[str, dict[str, Plan]] = field(default_factory=dict)  # by name of the measurement
    _told: set[tuple[str, ...]] = field(default_factory=set)  # of what notes were given

    def __call__(self, hook: SchedulerHook) -> Mapping[str, Plan]:
        """Return the plans for the generation that begins.

        Raises:
            PlanError: Nothing was measured for its setting, nor near enough.
        """
        setting = self.present(hook)
        plans = self.stored(setting, hook.scheduler)
        return plans if plans is not None else self._near(setting, hook)

    def reach(self, steps: int | None) -> int:
        """Return the longest time, in steps, that a measurement of generations of so many steps must cover."""
        return self.max_interval or self.request.goal.reach(steps)

    def take(self, given: Measurement, plans: Mapping[str, Plan] | None, name: str) -> None:
        """Take the measurement that the user named before all that is stored.

        Args:
            given: The measurement.
            plans: Those of its plans that were tried for the request; None where none were.
            name: What the user called it.

        Raises:
            PlanError: No plan can be made of it.
        """
        self.given = self.latest = given
        self.given_plans = plans
        plans = plans or self.plan(given)
        say(f"plan for {given.setting.steps} steps{_flops(plans)}, of the measurement {name}")
        present = self.present.models()
        changed = [component for component, digest in present.items() if given.setting.models[component] != digest]
        if changed:
            self._told.add(tuple(f"weights {name}" for name in changed))
            log.warning(
                "the measurement %s is of other weights of pipe.%s (a LoRA, a fine-tune, another dtype?); to measure "
                "these, leave measurement out", name, ", ".join(changed),
            )  # fmt: skip

    def stored(self, setting: Setting, scheduler: Any) -> Mapping[str, Plan] | None:
        """Return the plans for a setting that was measured: made for this request, or made now.

        None where nothing was measured for it, or what is stored does not fit the scheduler's present timesteps.
        """
        if setting.key in self._found:
            return self._found[setting.key]
        given = self.given
        if given is not None and given.setting.key == setting.key:
            made = self.given_plans or self.plan(given)
            plans = self._fitting(made, scheduler, "the measurement given")
            if plans is not None:
                self.latest, self.exact = given, True
                return self.follow(setting, plans)
        measured = self.store.measurement(setting)
        if measured is None or measured.longest_interval < self.reach(setting.steps):
            return None
        made = self.tried(setting) or self.store.plans(setting, self.request.untried) or self._plan_and_store(measured)
        plans = self._fitting(made, scheduler, str(self.store.folder_of(setting)))
        return None if plans is None else self._keep(setting, plans, "stored", measured)

    def tried(self, setting: Setting) -> Mapping[str, Plan] | None:
        """Return the plans that were tried for a setting; None where none were to be, or none are stored."""
        return self.store.tried_plans(setting, self.request) if self.request.tried else None

    def keep_tried(self, setting: Setting, plans: Mapping[str, Plan]) -> Mapping[str, Plan]:
        """Store plans that were tried for the latest measurement, which is of this very setting, and return them."""
        assert self.latest is not None
        placed = {
            name: _noted(_placed(plan, self.latest.sensitivities[name]), {TRIED_ON: self.request.tried})
            for name, plan in plans.items()
        }
        self.store.save_plans(setting, self.request, self.latest.name, placed)
        return placed

    def _fitting(self, plans: Mapping[str, Plan], scheduler: Any, where: str) -> Mapping[str, Plan] | None:
        try:
            for plan in plans.values():
                first_step(plan, scheduler)
        except PlanError as error:
            log.warning("a plan does not fit the timesteps that its setting names (%s): %s", where, error)
            return None
        return plans

    def add(self, setting: Setting, sensitivities: Mapping[str, Sensitivity]) -> None:
        """Store what was measured for a setting, and the plans.

        Raises:
            SensitivityError: A denoiser was never called.
            PlanError: No plan can be made of it.
        """
        missing = [name for name in self.present.denoisers if name not in sensitivities]
        if missing:
            raise SensitivityError(
                f"pipe.{missing[0]} was never called while measuring, so there is no plan for it; use settings under "
                "which every denoiser has a part, or take it out of the pipeline"
            )
        measured = self.store.save_measurement(setting, sensitivities, model_name(self.present.pipe))
        self._keep(setting, self._plan_and_store(measured), "new", measured)

    def tried_of(self, measured: Measurement) -> Mapping[str, Plan] | None:
        """Return the plans that were tried for the setting of a measurement, and None where none were."""
        return self.given_plans if measured is self.given else self.tried(measured.setting)

    def first_fresh_seed(self) -> int | None:
        """Return the first seed whose generation the latest plans owe nothing; None where nothing was measured."""
        if self.latest is None:
            return None
        measured = max(seed for table in self.latest.sensitivities.values() for seed in table.info.seeds)
        tried = [dict(plan.method).get(TRIED_ON) for plan in (self.tried_of(self.latest) or {}).values()]
        return measured + 1 + max((count for count in tried if isinstance(count, int)), default=0)

    def plan(self, measured: Measurement) -> dict[str, Plan]:
        """Return the plans made of a measurement.

        Raises:
            PlanError: The request cannot be met.
        """
        plans = {}
        for name, sensitivity in measured.sensitivities.items():
            try:
                plan = make_plan(sensitivity, self.request.goal, self.request.strategy)
            except PlanError as error:
                raise PlanError(f"pipe.{name}: {error}") from None
            plans[name] = _placed(plan, sensitivity)
            self._warn_of_change(name, sensitivity)
        return plans

    def _warn_of_change(self, name: str, sensitivity: Sensitivity) -> None:
        """Say where steps are so far apart that hardly anything of one is of use at another, as in few-step models."""
        change, steps = least_change(sensitivity), sensitivity.info.steps
        if change is not None and change > TOO_MUCH and (told := ("change", name, str(steps))) not in self._told:
            self._told.add(told)
            log.warning(
                "taken from the steps before, the modules of pipe.%s are %.0f%% off or more at each of its %d steps, "
                "so there is hardly anything to gain: leaving out any shows in the samples (verify=2 says how much)",
                name, 100 * change, steps,
            )  # fmt: skip

    def record(self, verified: Verified) -> None:
        """Keep what the latest plans were seen to do, if they are of the very setting that was run."""
        if self.latest is None or not self.exact:
            return
        self.verified = verified
        if self.given is None:
            self.store.save_verified(self.latest.setting, self.latest.name, verified)

    def all_verified(self, measured: Measurement) -> list[Verified]:
        """Return what plans of a measurement were seen to do, for whatever requests."""
        found = {each.request: each for each in self.store.verified(measured)}
        if self.verified is not None and self.latest is measured:
            found[self.verified.request] = self.verified
        return list(found.values())

    def _plan_and_store(self, measured: Measurement) -> dict[str, Plan]:
        plans = self.plan(measured)
        self.store.save_plans(measured.setting, self.request.untried, measured.name, plans)
        return plans

    def _near(self, setting: Setting, hook: SchedulerHook) -> Mapping[str, Plan]:
        """Return the plans of the nearest measurement that fits, and say once for each kind what differs.

        Raises:
            PlanError: There is none.
        """
        reasons = []
        for near in nearest_first(setting, self.given, self.store) if self.nearest else ():
            try:
                plans, loss = self._plans_near(near, setting, hook)
            except (PlanError, SensitivityError) as error:
                reasons.append(f"what was measured at {near.measured} does not serve: {error}")
                continue
            if near.kinds and near.kinds not in self._told:  # timesteps may differ by rounding alone
                self._told.add(near.kinds)
                log.warning("%s", note(near, setting, self.request, loss))
            return self.follow(setting, plans)
        raise PlanError(self._nothing(setting, reasons))

    def _plans_near(
        self, near: Near, setting: Setting, hook: SchedulerHook
    ) -> tuple[dict[str, Plan], Mapping[str, Any]]:
        """Return the plans of a measurement of another setting, and what deriving its tables lost."""
        found = near.load()
        measured, loss = derived(found, setting, hook)
        if measured is not found:
            plans = self.plan(measured)
        else:
            plans = dict(self._made.get(found.name) or self._made.setdefault(found.name, self.plan(found)))
        others = measured.setting.models != setting.models
        whole = tuple(timesteps_of(hook.scheduler))
        for name, plan in plans.items():
            first = first_step(plan, hook.scheduler)
            if near.part_differs:  # it may begin earlier or end later than what was measured
                plan = within(plan, first, whole)
            # A LoRA changes the weights that the fingerprint is of, not the regions.
            plans[name] = replace(plan, fingerprint="") if others else plan
        self.latest, self.exact = found, False
        return plans, loss

    def _nothing(self, setting: Setting, reasons: list[str]) -> str:
        return (
            f"no plan is stored for {setting.pipeline} at {setting.steps} steps ({self.store.folder_of(setting)})"
            + "".join(f"; {reason}" for reason in reasons[:2])
            + "; to measure one call soda_compile.restore(pipe) and "
            f"accelerate(pipe, num_inference_steps={setting.steps}, ...) with the other arguments of this call in "
            "pipeline_options or calibrate_with. With the former settings the pipeline runs as before"
        )

    def _keep(
        self, setting: Setting, plans: Mapping[str, Plan], kind: str, measured: Measurement
    ) -> Mapping[str, Plan]:
        self.latest, self.exact = measured, True
        folder = self.store.folder_of(setting)
        where = f", in {folder}" if os.path.exists(folder) else ""
        say(f"{kind} plan for {setting.steps} steps{_flops(plans)}{where}")
        return self.follow(setting, plans)

    def follow(self, setting: Setting, plans: Mapping[str, Plan]) -> Mapping[str, Plan]:
        """Let generations of a setting follow plans from here on; return these."""
        if len(self._found) == _REMEMBERED:
            self._found.clear()
        self._found[setting.key] = plans
        return plans


_REMEMBERED = 1024  # settings; a server may see any number
TRIED_ON = "tried_on"  # generations
_PLACE = ("first_step", "schedule_steps")


def _placed(plan: Plan, sensitivity: Sensitivity) -> Plan:
    """Return a plan that says which part of a schedule its measurement is of."""
    where = {key: int(sensitivity.info.notes[key]) for key in _PLACE if key in sensitivity.info.notes}
    return _noted(plan, where)


def _noted(plan: Plan, notes: Mapping[str, int]) -> Plan:
    return replace(plan, method=tuple({**dict(plan.method), **notes}.items()))


def _flops(plans: Mapping[str, Plan]) -> str:
    ratios = [plan.flop_ratio for plan in plans.values() if plan.flop_ratio is not None]
    return f", {100 * sum(ratios) / len(ratios):.0f}% of the FLOPs" if ratios else ""
