"""What every method looks like to the measurement: a call, and what surrounds a trajectory of calls."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def _nothing(*_: Any) -> None:
    pass


@dataclass(frozen=True, eq=False)
class Runner:
    """One method applied to one denoiser.

    Attributes:
        model: The denoiser, with the method's hooks where it has any.
        compile: Compiles what is called; ``model`` itself runs in eager mode.
        reset: Forgets the last trajectory.
        begin_step: Tells the method the step that comes, before the call.
        trajectory: Makes the context of one trajectory.
        held: The tensors that the method keeps from step to step.
        flops: FLOPs of each step, where the method knows them; else they are counted in eager mode.
        held_bytes: Memory of what it keeps, where the method knows it.
    """

    model: nn.Module
    compile: Callable[[nn.Module], Callable[..., Any]] | None = None
    reset: Callable[[], None] = _nothing
    begin_step: Callable[[int], None] = _nothing
    trajectory: Callable[[], AbstractContextManager[Any]] = nullcontext
    held: Callable[[], Any] = _nothing
    flops: Callable[[], tuple[int, ...]] | None = None
    held_bytes: Callable[[], int] | None = None


def tensors_in(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """All tensors that can be reached through containers and attributes of plain objects."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item, seen)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from tensors_in(item, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module):
        yield from tensors_in(vars(value), seen)


def bytes_in(value: Any) -> int:
    """Memory of the tensors in a structure, each storage once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors_in(value)}
    return sum(storages.values())


def run(runner: Runner, call: Callable[..., Any], calls: list[dict[str, Any]], around: Any = None) -> None:
    """One trajectory; ``around(step)`` makes a context for each call."""
    runner.reset()
    with torch.no_grad(), runner.trajectory():
        for step, inputs in enumerate(calls):
            runner.begin_step(step)
            with around(step) if around else nullcontext():
                call(**inputs)
