"""The names that diffusers' pipelines give to the branches of guidance."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from soda_compile.integrations.diffusers.method_hook import MethodHook
from soda_compile.runtime.clock import Clock


def name_branches(module: torch.nn.Module, clock: Clock) -> Callable[[], None]:
    """Let the ``cache_context`` that pipelines open around each denoiser call name the branch on a clock.

    Returns:
        What undoes it.
    """
    method: Any = getattr(module, "cache_context", None)
    if method is None:
        return lambda: None

    @contextmanager
    def named(name: str, *arguments: Any, **options: Any) -> Iterator[None]:
        with clock.calling(name), method(name, *arguments, **options):
            yield

    return MethodHook(method, named).attach().detach
