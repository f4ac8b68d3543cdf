"""Which scheduler drives a denoiser call: that of the innermost caller which holds one."""

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_SCHEDULES = ("set_timesteps", "step")


def driver(is_tied: Callable[[Any], bool]) -> Any:
    """Return the scheduler that drives the denoiser call of the caller; None if nothing tells.

    Pipelines may call each other, in callbacks, and share their parts. So neither the denoiser nor the order of events
    tells whose call it is, but the pipeline on the stack does: a local variable there is the pipeline, or the
    scheduler itself in a loop of one's own. Where one function holds several, a scheduler that is tied goes first.

    Args:
        is_tied: Whether a scheduler is one that the denoiser's calls may belong to.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        found = list(_schedulers(frame))
        if found:
            return next(filter(is_tied, found), found[0])
        frame = frame.f_back
    return None


def _schedulers(frame: FrameType) -> Iterator[Any]:
    for value in frame.f_locals.values():
        kind = type(value)
        if all(hasattr(kind, name) for name in _SCHEDULES):
            yield value
        elif kind.__dictoffset__:
            held = object.__getattribute__(value, "__dict__").get("scheduler")  # asks no proxy what it stands for
            if all(hasattr(type(held), name) for name in _SCHEDULES):
                yield held
