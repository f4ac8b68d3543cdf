"""Which generation a denoiser call belongs to: the innermost that is open around the call.

A context variable tells, which threads and asyncio tasks each have of their own. It does not follow generators: what a
generator sets while it runs stays set while it waits, for whoever called it. Generations that a generator opens are
therefore kept by its frame, and hold for the calls that have this frame on their stack.
"""

import contextlib
import inspect
import itertools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from soda_compile.runtime.batching import Together
    from soda_compile.runtime.generation import Generation


@dataclass(frozen=True)
class Outside:
    """A call that its caller knows to belong to no generation, and why."""

    reason: str


_given: ContextVar["Generation | Outside | Together | None"] = ContextVar("soda_compile_given", default=None)
_branch: ContextVar[str | None] = ContextVar("soda_compile_branch", default=None)
_open: ContextVar[tuple["Generation", ...]] = ContextVar("soda_compile_open", default=())
_by_frame: dict[int, list["Generation"]] = {}  # by identity of a generator's frame, which lives as long as it is open
_frame_of: dict[int, int] = {}  # the frame that opened a generation, by the generation's identity
_lock = threading.Lock()
_order = itertools.count(1)

_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


@contextmanager
def calling(generation: "Generation | Outside | Together") -> Iterator[None]:
    """Let the denoiser calls inside belong to a generation, to several, or to none: an integration knows it."""
    token = _given.set(generation)
    try:
        yield
    finally:
        _given.reset(token)


class BranchName:
    """The name of the branch of guidance that is called in this thread, for denoisers that generations share."""

    @property
    def name(self) -> str | None:
        """Return the name; None if there is none."""
        return _branch.get()

    @contextmanager
    def calling(self, branch: str) -> Iterator[None]:
        """Name the branch of guidance whose calls come inside."""
        token = _branch.set(branch)
        try:
            yield
        finally:
            _branch.reset(token)


BRANCH = BranchName()


def enter(generation: "Generation") -> None:
    """Open a generation for the function or the generator that enters it."""
    generation.entered = next(_order)
    owner = _owner(sys._getframe(2))
    if not owner.f_code.co_flags & _GENERATOR:
        _open.set((generation, *_open.get()))
        return
    with _lock:
        _by_frame.setdefault(id(owner), []).append(generation)
        _frame_of[id(generation)] = id(owner)


def leave(generation: "Generation") -> None:
    """Close a generation, in whatever context."""
    with _lock:
        frame = _frame_of.pop(id(generation), None)
        if frame is not None:
            _by_frame[frame].remove(generation)
            if not _by_frame[frame]:
                del _by_frame[frame]
            return
    opened = list(_open.get())
    if generation in opened:  # not in a context that was copied before it was opened
        opened.remove(generation)
        _open.set(tuple(opened))


def current_generation(parameter: torch.Tensor) -> "Generation | Outside | Together | None":
    """Return the generation of a call that comes now, of the model that owns ``parameter``; None if none is open."""
    given = _given.get()
    if given is not None:
        return given
    found = next((each for each in _open.get() if each.covers(parameter)), None)
    if not _by_frame:
        return found
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        for each in _by_frame.get(id(frame), ()):
            if each.covers(parameter) and (found is None or each.entered > found.entered):
                found = each
        frame = frame.f_back
    return found


def _owner(frame: FrameType) -> FrameType:
    """Return the frame whose ``with`` block it is: context managers made of generators enter for their caller."""
    while frame.f_back is not None:
        by_contextlib = frame.f_back.f_code.co_filename == contextlib.__file__
        if frame.f_code.co_filename != contextlib.__file__ and not (
            by_contextlib and frame.f_code.co_flags & _GENERATOR
        ):
            break
        frame = frame.f_back
    return frame
