"""Tries plans of several strategies on generations of a pipeline, before it follows the closest."""

from collections.abc import Callable, Mapping
from typing import Any

from soda_compile.acceleration.say import counted, say
from soda_compile.acceleration.searched_plans import SearchedPlans
from soda_compile.errors import OptionError
from soda_compile.measure.closest import closest_plan, strategies_for
from soda_compile.measure.free_memory import free_bytes
from soda_compile.measure.recording import Recording, record
from soda_compile.measure.simulation import simulate
from soda_compile.plans.plan import Plan
from soda_compile.plans.sensitivity import Sensitivity


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
    recording = record(source.present.pipe, generate, generations=request.tried, first_seed=first)
    sensitivity = simulated(recording, sensitivity)
    strategies = strategies_for(sensitivity)
    if request.strategy not in strategies.values():
        strategies = {request.strategy.name: request.strategy, **strategies}
    say(f"trying plans of {len(strategies)} strategies on {counted(request.tried, 'generation')}")
    closest = closest_plan(recording, sensitivity, request.goal, strategies=strategies)
    say(f"closest: {closest}")
    return {name: closest.plan}


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


def require_one(closest: int, denoisers: Mapping[str, Any]) -> None:
    """Check that plans can be tried.

    Raises:
        OptionError: If there are several denoisers: a generation under the plan of one says little about both.
    """
    if closest < 0:
        raise OptionError(f"closest is {closest}; it must be a number of generations, or 0")
    if closest and len(denoisers) > 1:
        raise OptionError(f"plans are tried with one denoiser, and there are {', '.join(denoisers)}; leave closest out")
