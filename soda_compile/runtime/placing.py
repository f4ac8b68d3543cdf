"""The place of a denoiser call in its generation: its step, its branch of guidance, and what that keeps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from soda_compile.runtime.branches import Branches, BranchState
from soda_compile.runtime.call_counter import CountedCall
from soda_compile.runtime.clock import Clock
from soda_compile.runtime.conditioning_cache import ConditioningCache
from soda_compile.runtime.constant_cache import ConstantCache
from soda_compile.runtime.misses import Miss
from soda_compile.runtime.slots import Budget, Slots, adopt

if TYPE_CHECKING:
    from soda_compile.runtime.denoiser import PlannedDenoiser

MOST_CALLS = 8
"""Calls within one step that may keep something, over those that the plan knows of: more are no branches."""


def find_branch(
    denoiser: "PlannedDenoiser",
    clock: Clock,
    branches: Branches[BranchState],
    timestep: float | None,
    budget: Budget,
    inputs: Sequence[Any],
) -> tuple[CountedCall, BranchState]:
    """Return the place of the call that comes now and the state of its branch, and move both on.

    Args:
        denoiser: What is called.
        clock: The clock of the generation.
        branches: The generation's branches under the plan.
        timestep: The call's timestep, where it is known.
        budget: Memory of the model's slots.
        inputs: Inputs of the call.

    Raises:
        Miss: The plan does not cover the call.
    """
    call = branches.counter.place(clock)
    require_covered(denoiser, call, clock, timestep)
    branches.counter.count(clock, call)
    state = branches.states.get(call.branch)
    if state is not None and state.step != call.step - 1:
        _require_restart(denoiser, clock, call, f"last ran step {state.step}")
        branches.drop(call.branch)
        state = None
    elif state is not None and state.planned is not denoiser.program:
        state = _moved(denoiser, branches, state, call, budget, inputs)
    if state is None:
        state = _begun(denoiser, clock, call, budget, inputs)
    branches.states[call.branch] = state
    state.step = call.step
    return call, state


def require_covered(denoiser: "PlannedDenoiser", call: CountedCall, clock: Clock, timestep: float | None) -> None:
    """Raise Miss if a call is none of the plan's; ``timestep`` is its own, where it is known."""
    plan = denoiser.plan
    if call.step >= plan.steps:
        raise Miss(
            "steps",
            f"the denoiser is called for step {call.step + 1} of a trajectory, but the plan has {plan.steps} steps; "
            "start a new trajectory for the next generation, or make a plan for this number of steps",
        )
    # A sampler that is tied tells the step, and its owner has checked the timesteps.
    if timestep is not None and not clock.restarts and not is_at(denoiser.timesteps, call.step, timestep):
        raise Miss(
            "timestep",
            f"the denoiser is called with {plan.timestep_input}={timestep:g}, but step {call.step} is due, which has "
            f"{denoiser.timesteps[call.step]:g}. The plan was made for {plan.steps} steps, timesteps "
            f"{denoiser.timesteps[0]:g} to {denoiser.timesteps[-1]:g}, and {plan.calls_per_step} denoiser call(s) a "
            "step. Use the same noise scheduler and step count, and put each generation inside "
            "`with soda_compile.trajectory(model):`",
        )
    if call.number >= plan.calls_per_step + MOST_CALLS:
        raise Miss(
            "calls",
            f"step {call.step} has {call.number + 1} denoiser calls, the plan knows of {plan.calls_per_step}; end a "
            "step with advance() on the trajectory, or with the step() of the scheduler that is tied",
        )


def is_at(timesteps: Sequence[float], step: int, timestep: float) -> bool:
    """Return whether a timestep is that of a step: narrow dtypes round, and shifts by the resolution are small."""
    due = timesteps[step]
    gaps = (abs(due - other) for other in timesteps[max(step - 1, 0) : step + 2] if other != due)
    return abs(timestep - due) <= max(0.01 * abs(due), 0.25 * min(gaps, default=0.0))


def _require_restart(denoiser: "PlannedDenoiser", clock: Clock, call: CountedCall, where: str) -> None:
    """Check that a branch may begin at a later step, where it computes everything once."""
    if denoiser.build is None or (denoiser.on_miss == "error" and not clock.restarts):
        raise Miss(
            "late",
            f"branch {call.branch} of guidance is called for step {call.step}, but in this trajectory it {where}; a "
            "branch must be called at every step, from the first. Check calls_per_step and where the trajectory "
            "starts",
        )


def _begun(
    denoiser: "PlannedDenoiser", clock: Clock, call: CountedCall, budget: Budget, inputs: Sequence[Any]
) -> BranchState:
    if call.step:
        _require_restart(denoiser, clock, call, "has not run")
    program = denoiser.starting_at(call.step).program
    slots = denoiser.pool.take(program, budget, inputs)
    if slots is None:
        raise Miss(
            "memory",
            f"{budget.used_bytes} bytes of slots are in use and this generation needs {program.slot_memory_bytes} "
            f"more, which slot_memory_bytes={denoiser.pool.limit_bytes} does not allow; raise it, or run fewer "
            "generations at once",
        )
    return _state(denoiser, call, call.step, slots)


def _moved(
    denoiser: "PlannedDenoiser",
    branches: Branches[BranchState],
    old: BranchState,
    call: CountedCall,
    budget: Budget,
    inputs: Sequence[Any],
) -> BranchState | None:
    """Return the branch under a program that was compiled anew in the middle of it; None if it must begin anew."""
    program = denoiser.starting_at(old.start).program
    slots = denoiser.pool.take(program, budget, inputs)
    if slots is not None and not adopt(slots, old.slots):
        slots.release()
        slots = None
    branches.drop(call.branch)
    return None if slots is None else _state(denoiser, call, old.start, slots)


def _state(denoiser: "PlannedDenoiser", call: CountedCall, start: int, slots: Slots) -> BranchState:
    kept = (slots.budget, denoiser.pool.limit_bytes)
    key, timesteps = (call.branch, start), denoiser.timesteps[start:]
    conditioning = ConditioningCache(denoiser.conditions, key, denoiser.timestep, timesteps, *kept)
    return BranchState(denoiser.program, start, slots, conditioning, ConstantCache(*kept))
