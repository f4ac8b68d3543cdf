"""Tensor subclasses around plain tensors, such as quantised weights."""

from collections.abc import Iterator, Sequence
from typing import Any

from soda_compile.torch_internals.tracing import is_wrapper


def has_wrapped(inputs: Sequence[Any]) -> bool:
    """Whether an input is a tensor subclass around plain tensors."""
    return any(is_wrapper(value) for value in inputs)


def flatten_inputs(inputs: Sequence[Any]) -> list[Any]:
    """Each wrapped tensor replaced, where it stands, by the plain tensors inside: inputs for the unwrapped graph."""
    return [leaf for value in inputs for _, leaf in plain_tensors(value)]


def plain_tensors(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the plain tensors inside a wrapped one, each with its path; any other value as it is."""
    if not is_wrapper(value):
        yield path, value
        return
    for name in value.__tensor_flatten__()[0]:
        yield from plain_tensors(getattr(value, name), f"{path}.{name}")
