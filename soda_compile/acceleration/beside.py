"""Compilation in a thread, while generations go on."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import torch

from soda_compile.runtime.clock import Clock
from soda_compile.runtime.current import calling
from soda_compile.runtime.generation import Generation
from soda_compile.torch_internals.background import compiling_beside

log = logging.getLogger(__name__)

THREAD = "soda-compile"


def compile_beside(run: Callable[[], Any], done: Callable[[], None]) -> None:
    """Compile in a thread by making a call in a generation of its own; at exit it is waited for.

    Args:
        run: Makes the call.
        done: Called after it, in the thread. Where the call fails it is called too: the next call like it then fails
            where the user sees it.
    """

    def work() -> None:
        clock = Clock(restarts=True)
        clock.begin()
        generation = Generation(clock, counted=False)
        try:
            with torch.no_grad(), compiling_beside(), calling(generation):
                run()
        except Exception as error:
            log.warning("compiling beside generations failed: %s: %s", type(error).__name__, error)
        finally:
            generation.end()
            done()

    threading.Thread(target=work, name=THREAD).start()
