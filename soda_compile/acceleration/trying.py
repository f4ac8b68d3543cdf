"""Tries plans of several strategies on generations of a pipeline, before it follows the closest."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from soda_compile.acceleration.say import counted, say
from soda_compile.acceleration.searched_plans import SearchedPlans
from soda_compile.errors import OptionError
from soda_compile.measure.closest import Closest, closest_plan, strategies_for
from soda_compile.measure.free_memory import free_bytes
from soda_compile.measure.player import playing
from soda_compile.measure.recording import Recording, record
from soda_compile.measure.simulation import simulate
from soda_compile.planner import Strategy
from soda_compile.plans.plan import Plan
from soda_compile.plans.sensitivity import Sensitivity

log = logging.getLogger(__name__)

PLAIN = "of the measurement"
TRIED = 8  # generations; on four plans come nearly as close to others, and on sixteen hardly closer


def try_plans(source: SearchedPlans, generate: Callable[[int], Any]) -> dict[str, Plan]:
    """Run plans for the request on recorded generations; return the closest, with fitted weights, by component name.

    Intervals are simulated first, for plans that are made of them, where the memory allows.

    Args:
        source: Of plans; its latest measurement is of the setting that is run.
        generate: Runs a generation of the pipeline from a seed; those after the measured ones are taken.

    Raises:
        PlanError: If no plan reaches the goal.
        SensitivityError: If the generations cannot be run again under a plan.
    """
    request, latest = source.request, source.latest
    assert latest is not None
    ((name, sensitivity),) = latest.sensitivities.items()
    first = max(sensitivity.info.seeds) + 1
    say(f"recording {counted(request.tried, 'generation')} more to try plans on; closest=0 leaves that out")
    recording = record(source.present.pipe, generate, generations=request.tried, first_seed=first)
    with playing(recording):  # captured once for all
        sensitivity = simulated(recording, sensitivity)
        strategies = {PLAIN: request.strategy}
        strategies |= {name: each for name, each in strategies_for(sensitivity).items() if each != request.strategy}
        say(f"trying plans of {len(strategies)} strategies on {counted(request.tried, 'generation')}")
        closest = closest_plan(recording, sensitivity, request.goal, strategies=strategies)
    say(told(closest))
    return {name: closest.plan}


def told(closest: Closest) -> str:
    """Return what was found, in a line."""
    plain = closest.compared.errors[PLAIN].mean() if PLAIN in closest.compared.errors else None
    off = closest.compared.errors[closest.name] if closest.fit is None else closest.fit.after
    fitted = "" if closest.fit is None else " with fitted weights"
    instead = "" if plain is None else f" instead of {plain:.2%}"
    return f"closest is the plan {closest.name!r}{fitted}: {off.mean():.2%} off on these generations{instead}"


def simulated(recording: Recording, sensitivity: Sensitivity) -> Sensitivity:
    """Return the sensitivity with simulated intervals; as it is, and say so, where these do not fit the memory."""
    if sensitivity.intervals is not None:
        return sensitivity
    say(f"simulating intervals on {counted(len(recording.generations), 'generation')}")
    sample = recording.generations[0][0].scheduler.sample
    try:
        return simulate(recording, sensitivity, memory_bytes=free_bytes(sample.device))
    except OptionError as error:
        say(f"no intervals are simulated: {error}")
        return sensitivity


def try_plans_if_possible(source: SearchedPlans, generate: Callable[[int], Any]) -> dict[str, Plan]:
    """Do what ``try_plans`` does; where that fails, say why, and return the plans of the measurement."""
    try:
        return try_plans(source, generate)
    except Exception as error:  # nobody asked for it, and there is a plan without it
        log.debug("plans could not be tried", exc_info=True)
        reason = next(iter(str(error).splitlines()), "")
        say(
            f"no plans are tried ({type(error).__name__}: {reason}), so those of the measurement are followed; "
            "refresh=True measures and tries again"
        )
        assert source.latest is not None
        return source.plan(source.latest)


def number_tried(closest: int | None, denoisers: Mapping[str, Any], strategy: Strategy | None, *, now: bool) -> int:
    """Return the number of generations to try plans on.

    Args:
        closest: As the user gave it; None for what is best here.
        denoisers: Of the pipeline.
        strategy: As the user gave it: plans by it are wanted then, and not the closest.
        now: Whether generations run before the user's.

    Raises:
        OptionError: If there are several denoisers: a generation under the plan of one says little about both.
    """
    if closest is None:
        return TRIED if now and len(denoisers) == 1 and strategy is None else 0
    if closest < 0:
        raise OptionError(f"closest is {closest}; it must be a number of generations, or 0")
    if closest and len(denoisers) > 1:
        raise OptionError(f"plans are tried with one denoiser, and there are {', '.join(denoisers)}; leave closest out")
    return closest
