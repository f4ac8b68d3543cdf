"""Tensor subclasses around plain tensors, such as quantised weights."""

from collections.abc import Iterator, Sequence
from typing import Any

from soda_compile.torch_internals.tracing import is_wrapper


def has_wrapped(inputs: Sequence[Any]) -> bool:
    """Return whether an input is a tensor subclass around plain tensors."""
    return any(is_wrapper(value) for value in inputs)


def flatten_inputs(inputs: Sequence[Any]) -> list[Any]:
    """Return the inputs of the unwrapped graph: each wrapped tensor replaced by the plain tensors inside."""
    return [leaf for value in inputs for _, leaf in plain_tensors(value)]


def plain_tensors(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the plain tensors inside a wrapped one, each with its path; any other value as it is."""
    if not is_wrapper(value):
        yield path, value
        return
    for name in value.__tensor_flatten__()[0]:
        yield from plain_tensors(getattr(value, name), f"{path}.{name}")
