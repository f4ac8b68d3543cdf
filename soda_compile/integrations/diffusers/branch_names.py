"""The names that diffusers' pipelines give to the branches of guidance."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch

from soda_compile.integrations.diffusers.method_hook import MethodHook


class Named(Protocol):
    """What takes the name of the branch that is called, such as a clock."""

    def calling(self, branch: str) -> AbstractContextManager[None]:
        """Name the branch of guidance whose calls come inside."""


def name_branches(module: torch.nn.Module, named: Named) -> Callable[[], None]:
    """Let the ``cache_context`` that pipelines open around each denoiser call name the branch.

    Returns:
        What undoes it.
    """
    method: Any = getattr(module, "cache_context", None)
    if method is None:
        return lambda: None

    @contextmanager
    def calling(name: str, *arguments: Any, **options: Any) -> Iterator[None]:
        with named.calling(name), method(name, *arguments, **options):
            yield

    return MethodHook(method, calling).attach().detach
