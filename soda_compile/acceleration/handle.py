"""The attribute of a pipeline under which ``restore`` finds what was done to it."""

from __future__ import annotations

from typing import Any, Protocol

from soda_compile.errors import OptionError

_NAME = "_soda_compile"


class Removable(Protocol):
    """A change to a pipeline."""

    def remove(self) -> None:
        """Take the change back."""


def require_free(pipe: Any) -> None:
    """Raise OptionError if a pipeline is changed already."""
    if hasattr(pipe, _NAME):
        raise OptionError(f"this {type(pipe).__name__} is accelerated already; call soda_compile.restore(pipe) first")


def put(pipe: Any, change: Removable) -> Any:
    """Note a change on a pipeline, and return the pipeline."""
    setattr(pipe, _NAME, change)
    return pipe


def restore(pipe: Any) -> Any:
    """Takes back what ``accelerate`` or ``install`` did.

    Raises:
        OptionError: If the pipeline is not accelerated.
    """
    if not hasattr(pipe, _NAME):
        raise OptionError(f"this {type(pipe).__name__} is not accelerated: there is nothing to restore")
    getattr(pipe, _NAME).remove()
    delattr(pipe, _NAME)
    return pipe
