"""Generations that nobody opened: calls are counted, and so many of them are one."""

import asyncio
import threading
from collections.abc import Hashable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from soda_compile.runtime.clock import Clock
from soda_compile.runtime.generation import Generation
from soda_compile.runtime.per_model import PerModel


class _Anchor:
    """Stands for a thread, and ends with it."""


@dataclass(eq=False)
class Counted:
    """The generation whose calls are counted in one thread or task, for one model and plan.

    Attributes:
        generation: The present one.
        calls: Its calls so far.
    """

    generation: Generation
    calls: int = 0


@dataclass(eq=False)
class CountedGenerations:
    """The counted generations of one model, by thread or asyncio task, and by plan."""

    _by_owner: WeakKeyDictionary[object, dict[Hashable, Counted]] = field(default_factory=WeakKeyDictionary)

    def next(self, key: Hashable, calls: int, calls_per_step: int, starts: bool) -> Counted:
        """Return the generation of the call that comes now.

        Args:
            key: Names the plan.
            calls: Number of calls after which a new generation begins.
            calls_per_step: Calls in a step.
            starts: Whether the call shows that it is one of a first step.
        """
        by_plan = self._by_owner.setdefault(caller(), {})
        counted = by_plan.get(key)
        if counted is None or counted.calls >= calls or (starts and counted.calls >= calls_per_step):
            if counted is not None:
                counted.generation.end()
            clock = Clock(automatic=True)
            clock.begin()
            counted = by_plan[key] = Counted(Generation(clock))
        return counted

    def forget(self, key: Hashable) -> None:
        """End the generation of this thread or task: the next call begins one."""
        counted = self._by_owner.get(caller(), {}).pop(key, None)
        if counted is not None:
            counted.generation.end()


_thread = threading.local()


def caller() -> object:
    """Return what stands for the asyncio task or else the thread that runs."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    if task is not None:
        return task
    if not hasattr(_thread, "anchor"):
        _thread.anchor = _Anchor()
    anchor: object = _thread.anchor
    return anchor


counted_generations = PerModel(CountedGenerations).of
"""Return the counted generations of the model that owns a parameter."""
