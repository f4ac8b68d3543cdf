"""Compilation in a thread, while generations go on."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from soda_compile.runtime.clock import Clock
from soda_compile.runtime.current import calling
from soda_compile.runtime.generation import Generation
from soda_compile.torch_internals.background import compiling_beside

THREAD = "soda-compile"


@contextmanager
def uncounted(clock: Clock) -> Iterator[None]:
    """Let the denoiser calls inside be a generation of their own, that statistics do not count."""
    clock.begin()
    generation = Generation(clock, counted=False)
    try:
        with calling(generation):
            yield
    finally:
        generation.end()


def compile_beside(
    work: Callable[[], None], failed: Callable[[Exception], None], done: Callable[[], None], *, thread: bool = True
) -> None:
    """Compile while generations go on; at exit it is waited for.

    Args:
        work: Compiles.
        failed: Takes what it raises, as nobody would see that in a thread.
        done: Called after it, however it ends.
        thread: False to compile at once, in the thread that calls.
    """

    def run() -> None:
        try:
            with torch.no_grad(), compiling_beside():
                work()
        except Exception as error:
            failed(error)
        finally:
            done()

    if thread:
        threading.Thread(target=run, name=THREAD).start()
    else:
        run()
