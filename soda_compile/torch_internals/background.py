"""Compilation in a thread, while others run what is compiled already. Checked with torch 2.11 to 2.14.

Torch compiles as if no other thread ran. What it changes for the whole process meanwhile is kept to the thread here.
"""

import functools
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch


@contextmanager
def compiling_beside() -> Iterator[None]:
    """Compile in this thread, and in no other; calls in other threads are not to notice."""
    from torch._dynamo.convert_frame import compile_lock

    with (
        compile_lock,
        _random_state_left(),
        _modules_traced_here_only(),
        _calls_annotated_here_only(),
        _compiled_code_runs(),
        _turns_taken_often(),
    ):
        yield


@contextmanager
def _random_state_left() -> Iterator[None]:
    """Leave the random state of the process alone.

    Torch puts it back after each graph that it compiles: another thread that draws its noise would draw it again.
    """
    here = threading.get_ident()
    with ExitStack() as stack:
        for owner, name in ((torch.random, "set_rng_state"), (torch.cuda, "set_rng_state"), (random, "setstate")):
            stack.enter_context(mock.patch.object(owner, name, _by_thread(here, _do_nothing, getattr(owner, name))))
        yield


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _by_thread(here: int, inside: Callable[..., Any], outside: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is one in the thread ``here``, and another in all others."""

    @functools.wraps(inside)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (inside if threading.get_ident() == here else outside)(*args, **kwargs)

    return call


@contextmanager
def _modules_traced_here_only() -> Iterator[None]:
    """Let calls of modules be traced in this thread alone: tracing replaces methods of ``torch.nn.Module``."""
    from torch.fx import _symbolic_trace

    here, replace = threading.get_ident(), _symbolic_trace._Patcher.patch_method

    def replace_here(patcher: Any, owner: type, name: str, new: Callable[..., Any], deduplicate: bool = True) -> None:
        replace(patcher, owner, name, _by_thread(here, new, getattr(owner, name)), deduplicate)

    with mock.patch.object(_symbolic_trace._Patcher, "patch_method", replace_here):
        yield


@contextmanager
def _calls_annotated_here_only() -> Iterator[None]:
    """Let calls that Dynamo leaves alone be annotated in this thread alone.

    While one thread exports, torch annotates them in all threads, in one dict that the export replaces under way.
    """
    from torch._dynamo import eval_frame
    from torch.fx import traceback

    annotate = _by_thread(threading.get_ident(), traceback.annotate, nullcontext)
    with mock.patch.object(eval_frame, "fx_traceback", SimpleNamespace(**{**vars(traceback), "annotate": annotate})):
        yield


@contextmanager
def _compiled_code_runs() -> Iterator[None]:
    """Let compiled functions run in other threads, where Dynamo takes them for part of the trace.

    Settings that are changed hold in one thread, so it is the default that changes.
    """
    from torch._dynamo import config

    entry = config._config["force_compile_during_fx_trace"]  # type: ignore[attr-defined]
    with mock.patch.object(entry, "default", True):
        yield


@contextmanager
def _turns_taken_often() -> Iterator[None]:
    """Let other threads have the interpreter soon: they ask for it with each operator that they start."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, 0.0005))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
