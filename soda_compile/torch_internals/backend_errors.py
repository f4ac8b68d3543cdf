"""Errors of a backend that leave ``torch.compile`` as they are.

Dynamo wraps whatever a backend raises in its own ``BackendCompilerFailed``, but for errors of its class
``ShortenTraceback``, so an error on the way out is given a class that is both. Checked with torch 2.11 to 2.13.
"""

import functools
import inspect
from collections.abc import Callable
from types import FrameType
from typing import Any

from soda_compile.errors import SodaError


def errors_unwrapped(backend: Callable[..., Any]) -> Callable[..., Any]:
    """Return the backend, whose errors of this project are caught by their own class outside ``torch.compile``."""

    @functools.wraps(backend)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return backend(*arguments, **options)
        except SodaError as error:
            kind: Any = type(error)
            passing = _passing(kind)(str(error), inspect.currentframe())
            raise passing.with_traceback(error.__traceback__) from error.__cause__

    return run


@functools.cache
def _passing(kind: type[Any]) -> type[Any]:
    """Return a class of errors that is shown and caught as the given one and that Dynamo lets pass."""
    from torch._dynamo.exc import ShortenTraceback

    class Passing(kind, ShortenTraceback):  # type: ignore[misc]
        def __init__(self, text: str, first_useful_frame: FrameType | None) -> None:
            super().__init__(text, first_useful_frame=first_useful_frame)
            self._text = text

        def __str__(self) -> str:
            return self._text  # without what Dynamo appends

        def __reduce__(self) -> tuple[Any, ...]:
            return kind, (self._text,)

    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(Passing, name, getattr(kind, name))
    return Passing
