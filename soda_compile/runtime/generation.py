"""A generation: one run of a sampler, which owns its clock, its slots and its statistics."""

import threading
import weakref
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from soda_compile.runtime import current
from soda_compile.runtime.branches import Branches
from soda_compile.runtime.clock import Clock
from soda_compile.runtime.statistics import Tally
from soda_compile.torch_internals.wrapped_tensors import flatten_inputs


class Generation:
    """One generation of one denoiser. What it keeps belongs to it alone, so any number may be under way at once.

    Entered with ``with``, the calls of its model inside belong to it, and only these; it may be entered for each step
    anew, in any thread. ``end`` ends it, and so does the garbage collector. ``trajectory`` opens and ends one.

    Attributes:
        clock: Tells the step.
        tally: What its steps did so far.
        lock: Held while a call finds its place.
        counted: Whether statistics count its calls; those that are made to compile, or to take times, are no user's.
    """

    def __init__(self, clock: Clock, parameters: Iterable[torch.Tensor] = (), *, counted: bool = True) -> None:
        """Begin a generation.

        Args:
            clock: Tells the step; it has begun its trajectory.
            parameters: Parameters and buffers of the model, by which its calls are known.
            counted: See above.
        """
        self.clock = clock
        self.counted = counted
        self.tally = Tally()
        self.lock = threading.Lock()
        self.entered = 0
        self._parameters = frozenset(map(id, parameters))
        self._branches: dict[Hashable, Branches[Any]] = {}
        self._end = weakref.finalize(self, _end, self._branches)

    @property
    def trajectory(self) -> int:
        """Return the number of the generation, unique in the process."""
        return self.clock.trajectory

    @property
    def ended(self) -> bool:
        """Return whether it has ended; calls inside then run without the plan."""
        return not self._end.alive

    def advance(self) -> None:
        """End the present step, see ``Clock.advance``."""
        self.clock.advance()

    def covers(self, parameter: torch.Tensor) -> bool:
        """Return whether calls of the model that owns ``parameter`` belong to it."""
        return id(parameter) in self._parameters and not self.ended

    def branches(self, key: Hashable, calls_per_step: int) -> Branches[Any]:
        """Return the branches of guidance under one plan; ``key`` names the model and the plan."""
        found = self._branches.get(key)
        return self._branches.setdefault(key, Branches(calls_per_step)) if found is None else found

    def end(self) -> None:
        """End the generation and give its slots back."""
        self._end()

    def __enter__(self) -> "Generation":
        current.enter(self)
        return self

    def __exit__(self, *error: object) -> None:
        current.leave(self)

    def __repr__(self) -> str:
        state = "ended" if self.ended else "under way"
        return f"Generation({self.trajectory}, {state}, {self.tally})"


def _end(branches: dict[Hashable, Branches[Any]]) -> None:
    for each in list(branches.values()):
        each.release()
    branches.clear()


@contextmanager
def trajectory(
    model: torch.nn.Module, *, manual: bool = False, timesteps: Iterable[float] | torch.Tensor | None = None
) -> Iterator[Generation]:
    """Open one generation of a hand-written sampling loop.

    Every call of ``model`` inside, compiled with backend "soda", belongs to this generation: calls of other threads,
    tasks and generators have their own. It starts clean, whatever happened before, and ends with the block. ::

        with soda_compile.trajectory(model):
            for t in timesteps:
                x = scheduler.step(model(x, t), t, x).prev_sample

    Args:
        model: The denoiser, compiled or not: its parameters and buffers tell which compiled calls are meant.
        manual: By default each step has as many denoiser calls as the plan says (``calls_per_step``, one unless
            guidance makes a second one), and these advance the step. With ``manual=True`` the step ends where the
            loop calls ``advance()`` on the generation; the calls within a step are branches of guidance.
        timesteps: Those that the loop goes through. On a GPU, where the denoiser's timestep cannot be
            read without waiting, they let option ``conditioning="trajectory"`` know that they are the same again.

    Yields:
        The generation.
    """
    generation = new_generation(model, manual=manual, timesteps=timesteps)
    try:
        with generation:
            yield generation
    finally:
        generation.end()


def new_generation(
    model: torch.nn.Module, *, manual: bool = False, timesteps: Iterable[float] | torch.Tensor | None = None
) -> Generation:
    """Return a generation that goes on each time it is entered, until ``end``; see ``trajectory``.

    For samplers that are driven a step at a time, such as a server's::

        generation = soda_compile.new_generation(model)
        ...
        with generation:
            noise = model(x, t)  # one step; the next may come from another thread
    """
    if isinstance(timesteps, torch.Tensor):
        timesteps = timesteps.tolist()  # at once, from a device
    clock = Clock(automatic=not manual)
    clock.begin(schedule=None if timesteps is None else tuple(map(float, timesteps)))
    owned: list[Any] = [*model.parameters(), *model.buffers()]
    return Generation(clock, flatten_inputs(owned))
