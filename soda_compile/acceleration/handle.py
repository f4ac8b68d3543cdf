"""The attribute of a pipeline under which ``restore`` finds what was done to it."""

from typing import Any

from soda_compile.errors import OptionError

HANDLE = "_soda_compile"


def require_free(pipe: Any) -> None:
    """Raise OptionError if a pipeline is changed already."""
    if hasattr(pipe, HANDLE):
        raise OptionError(f"this {type(pipe).__name__} is accelerated already; call soda_compile.restore(pipe) first")


def restore(pipe: Any) -> Any:
    """Take back what ``accelerate`` or ``install`` did.

    Raises:
        OptionError: If the pipeline is not accelerated, or is a copy of one that is.
    """
    if not hasattr(pipe, HANDLE):
        raise OptionError(f"this {type(pipe).__name__} is not accelerated: there is nothing to restore")
    handle = getattr(pipe, HANDLE)
    if handle.pipe is not pipe:
        raise OptionError(
            f"this {type(pipe).__name__} is a copy of an accelerated one; restore that, which concerns all copies"
        )
    handle.remove()
    delattr(pipe, HANDLE)
    return pipe
