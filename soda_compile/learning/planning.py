"""From what was measured to the plan that is asked for; actions are timed first where times are asked for."""

from collections.abc import Callable

from soda_compile.ir.structure import Structure
from soda_compile.learning.wish import Wish
from soda_compile.measure.gram import Floats
from soda_compile.measure.probing import Probing
from soda_compile.measure.profile_store import device_name, profile_key
from soda_compile.planner import plan
from soda_compile.plans.plan import Plan
from soda_compile.plans.sensitivity import Sensitivity


def plan_for(wish: Wish, sensitivity: Sensitivity, structure: Structure, times_us: Callable[[Probing], Floats]) -> Plan:
    """Return the plan that a wish asks for.

    Args:
        wish: The wish.
        sensitivity: What was measured.
        structure: The denoiser.
        times_us: Times the steps of probes, in microseconds, [rounds, steps].

    Raises:
        PlanError: No plan reaches the goal.
    """
    profile = None
    if wish.request.goal.latency_ms is not None:
        probing, device = Probing.build(structure, None), device_name(structure.regions[0].cuts[0].device)
        profile = probing.profile(times_us(probing), device, profile_key(structure, device, {}))
    return plan(sensitivity, wish.request.goal, wish.request.strategy, profile=profile)
