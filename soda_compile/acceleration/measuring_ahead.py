"""What ``accelerate`` does before the first generation: finds what was measured for it, or measures."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from soda_compile.acceleration.say import counted, say
from soda_compile.acceleration.searched_plans import SearchedPlans
from soda_compile.acceleration.setting import Setting, differences
from soda_compile.acceleration.trying import try_plans, try_plans_if_possible
from soda_compile.errors import OptionError, SensitivityError
from soda_compile.integrations.diffusers.beginnings import Watching, begin
from soda_compile.integrations.diffusers.calibration_runs import CalibrateWith, calibration_runs, default_of
from soda_compile.measure.calibration import calibrate_denoisers
from soda_compile.storage.lock import locked

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Runs:
    """Generations to measure on.

    Attributes:
        generate: Runs one from a seed.
        generations: How many make a measurement.
        steps: Of each; None where the function that runs one, or what it is given, decides.
        must_try: Whether it is an error that plans cannot be tried on more of them.
    """

    generate: Callable[[int], Any]
    generations: int
    steps: int | None = None
    must_try: bool = False

    @classmethod
    def of(
        cls, pipe: Any, calibrate_with: CalibrateWith, call: Mapping[str, Any], options: Mapping[str, Any]
    ) -> "Runs":
        """Make them of the arguments of ``accelerate``.

        Args:
            pipe: The pipeline.
            calibrate_with: What to generate from.
            call: What will be passed to the pipeline, None where that is its default. A function passes what it wants.
            options: More arguments for the pipeline.

        Raises:
            OptionError: If there is nothing to generate from.
        """
        if callable(calibrate_with):
            return cls(*calibration_runs(pipe, calibrate_with, options))
        arguments = {**{key: value for key, value in call.items() if value is not None}, **options}
        steps = arguments.get("num_inference_steps") or default_of(pipe, "num_inference_steps")
        if steps is None:
            raise OptionError(f"{type(pipe).__name__} has no default number of steps; pass num_inference_steps")
        given = () if isinstance(calibrate_with, int) else calibrate_with
        decided = any(isinstance(each, Mapping) and "num_inference_steps" in each for each in given)
        return cls(*calibration_runs(pipe, calibrate_with, arguments), None if decided else steps)


def find_or_measure(source: SearchedPlans, runs: Runs, *, refresh: bool) -> None:
    """Take the plans that are stored for the setting of the given generations; where there are none, measure.

    Of processes that share a store and run the same weights, one measures, and the others wait for what it stores.
    The setting is known once a generation begins. Where measurements of these very weights are stored, one generation
    is begun and broken off before its first step, to look for its setting among them.

    Args:
        source: Holds the plans.
        runs: What to measure on.
        refresh: Measure in any case.

    Raises:
        SensitivityError: If nothing can be measured.
        PlanError: If no plan can be made of it.
    """
    known = _known(source)
    if not refresh and known and _find(source, runs):
        return
    with locked(source.store.folder, _name(source), _say_waiting):
        if not refresh and _known(source) != known and _find(source, runs):
            return
        measure(source, runs)


def _known(source: SearchedPlans) -> set[str]:
    """Return the names of the measurements of these very weights that are stored."""
    models, pipeline = source.present.models(), type(source.present.pipe).__name__
    abouts = (folder.about() for folder in source.store.folders())
    return {about.name for about in abouts if about and (about.pipeline, about.models) == (pipeline, models)}


def _name(source: SearchedPlans) -> str:
    return "-".join([type(source.present.pipe).__name__, *source.present.models().values()])


def _say_waiting() -> None:
    say("another process measures this model; waiting for it")


def _find(source: SearchedPlans, runs: Runs) -> bool:
    """Return whether nothing needs to be measured now."""
    try:
        setting = _begun(source, runs)
    except Exception as error:  # whatever a pipeline raises for inputs that it cannot use
        log.warning(
            "a generation to measure on fails before its first step (%s: %s), so nothing is measured now; generations "
            "follow what is stored for them, or the nearest",
            type(error).__name__, error,
        )  # fmt: skip
        return True
    if setting is None or source.stored(setting, source.present.pipe.scheduler) is None:
        return False
    _try(source, runs, setting)
    return True


def _begun(source: SearchedPlans, runs: Runs) -> Setting | None:
    """Return the setting of a generation that is broken off before its first step; None where it sets no timesteps."""
    settings: list[Setting] = []
    begin(source.present.pipe.scheduler, runs.generate, lambda hook: settings.append(source.present(hook)))
    return settings[0] if settings else None


def _steps(source: SearchedPlans, runs: Runs) -> int | None:
    """Return the number of steps of the generations to measure on; None where they set no timesteps."""
    if runs.steps is not None:
        return runs.steps
    setting = _begun(source, runs)
    return None if setting is None else setting.steps


def _try(source: SearchedPlans, runs: Runs, setting: Setting) -> None:
    """Where plans are to be tried and were not, by no process that shares the store, try them."""
    if not source.request.tried:
        return
    plans = source.tried(setting)
    if plans is None:
        attempt = try_plans if runs.must_try else try_plans_if_possible
        with locked(source.store.folder, f"{_name(source)}-tried", _say_waiting):
            plans = source.tried(setting) or source.keep_tried(setting, attempt(source, runs.generate))
    source.follow(setting, plans)


def measure(source: SearchedPlans, runs: Runs) -> None:
    """Run generations, and store what was measured and the plans; see ``find_or_measure``."""
    settings: list[Setting] = []
    say(f"measuring {type(source.present.pipe).__name__} in {counted(runs.generations, 'generation')}")
    measured = calibrate_denoisers(
        source.present.pipe,
        runs.generate,
        generations=runs.generations,
        max_interval=source.reach(_steps(source, runs)),
        framework=Watching(lambda hook: settings.append(source.present(hook))),
    )
    if not settings:
        raise SensitivityError(
            f"the generations to measure on never set the timesteps of {type(source.present.pipe).__name__}"
        )
    setting = settings[0]
    if mixed := [each for other in settings for each in differences(other, setting)]:
        log.warning("the generations to measure on differ: %s. They are stored as the first", mixed[0].text)
    tables = {
        name: replace(each, info=replace(each.info, guidance=setting.guidance)) for name, each in measured.items()
    }
    source.add(setting, tables)
    _try(source, runs, setting)
