"""Ties noise schedulers to what follows their steps: one scheduler and all copies of it, each by itself.

A scheduler that is tied gets a class of its own, between its class and the object: other schedulers stay as they are,
and copies, which servers make for each request, are tied as well.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

from soda_compile.errors import OptionError

METHODS = ("set_timesteps", "set_begin_index", "scale_model_input", "step")
_TIES = "_soda_compile_ties"


class Follower(Protocol):
    """What follows one scheduler; it must not keep the scheduler alive."""

    def around(self, name: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call one of the scheduler's ``METHODS``, and return what it returned."""


Kind = TypeVar("Kind", bound=Follower)


class SchedulerTies(Generic[Kind]):
    """A scheduler and its copies, each with a follower.

    Attributes:
        make: Makes the follower of a scheduler.
    """

    def __init__(self, make: Callable[[Any], Kind]) -> None:
        self.make = make
        self._followers: WeakKeyDictionary[Any, Kind] = WeakKeyDictionary()
        self._tied = True

    def tie(self, scheduler: Any) -> None:
        """Tie a scheduler.

        Raises:
            OptionError: If it is tied already.
        """
        if ties_of(scheduler) is not None:
            raise OptionError(
                f"this {type(scheduler).__name__} is tied already: if this pipeline is accelerated, call "
                "soda_compile.restore(pipe) first; if its scheduler is another's too, give it its own, "
                "pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)"
            )
        scheduler.__class__ = _tied_class(type(scheduler), self)

    def untie(self, scheduler: Any) -> None:
        """Give a scheduler its class back; copies of it run as if they were not tied."""
        self._tied = False
        if getattr(type(scheduler), _TIES, None) is self:
            scheduler.__class__ = type(scheduler).__mro__[1]

    def owns(self, scheduler: Any) -> bool:
        """Return whether a scheduler is one of these."""
        return ties_of(scheduler) is self

    def follower(self, scheduler: Any) -> Kind | None:
        """Return what follows a scheduler; None if it is not one of these, or they are untied."""
        if not self.owns(scheduler):
            return None
        if scheduler not in self._followers:
            self._followers[scheduler] = self.make(scheduler)
        return self._followers[scheduler]


def ties_of(scheduler: Any) -> SchedulerTies[Any] | None:
    """Return what a scheduler is tied by; None if it is not."""
    ties = getattr(type(scheduler), _TIES, None)
    return ties if ties is not None and ties._tied else None


def untied_class(scheduler: Any) -> type:
    """Return the class that a scheduler has when it is not tied."""
    kind = type(scheduler)
    while _TIES in vars(kind):
        kind = kind.__mro__[1]
    return kind


def _tied_class(base: type, ties: SchedulerTies[Any]) -> type:
    def follow(name: str) -> Callable[..., Any]:
        method = getattr(base, name)

        @functools.wraps(method)  # pipelines look at signatures
        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            bound = functools.partial(method, self)
            follower = ties.follower(self)
            if follower is None:
                return bound(*arguments, **options)
            return follower.around(name, bound, *arguments, **options)

        return call

    members: dict[str, Any] = {name: follow(name) for name in METHODS if hasattr(base, name)}
    members |= {_TIES: ties, "__reduce_ex__": _reduce, "__copy__": _copy, "__deepcopy__": _deepcopy}
    members |= {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (base,), members)


def _reduce(self: Any, protocol: Any) -> Any:
    """A file holds the scheduler as it is when it is not tied."""
    plain: Any = object.__new__(untied_class(self))
    vars(plain).update(vars(self))
    return plain.__reduce_ex__(1)  # in later protocols the class of the object itself is checked


def _copy(self: Any) -> Any:
    made = object.__new__(type(self))
    vars(made).update(vars(self))
    return made


def _deepcopy(self: Any, memo: dict[int, Any]) -> Any:
    made = memo[id(self)] = object.__new__(type(self))
    vars(made).update(copy.deepcopy(vars(self), memo))
    return made
