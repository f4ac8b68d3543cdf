"""Sizes that Dynamo made symbolic, and the numbers that they are in one call."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from soda_compile.torch_internals.size_expressions import follows_from_data, layout_of


def symbolic_inputs(inputs: Sequence[Any]) -> tuple[int, ...]:
    """Return the indices of inputs that are symbolic numbers, or have symbolic sizes or strides, all with a hint."""
    return tuple(index for index, value in enumerate(inputs) if any(map(_is_symbolic, layout_of(value))))


def sizes_of(inputs: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    """Return what of each input may be symbolic, as numbers."""
    return tuple(tuple(map(_number, layout_of(value))) for value in inputs)


def lasting_copy(module: fx.GraphModule) -> fx.GraphModule:
    """Copy a graph from Dynamo with what its inputs are, which Dynamo forgets when it has compiled it."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    return fx.GraphModule(module, graph)


@contextmanager
def fixed_sizes(inputs: Sequence[Any]) -> Iterator[list[Any]]:
    """Give fake inputs with the sizes of one call, under a tracing context of their own, which leaves no guards.

    Args:
        inputs: Of a graph from Dynamo, its example inputs or those of a call.
    """
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv(tracked_fakes=[]))

    def fixed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return _number(value)
        shape, stride = (list(map(_number, sizes)) for sizes in (value.shape, value.stride()))
        with mode:
            made = torch.empty_strided(shape, stride, dtype=value.dtype, device=value.device)
        if isinstance(value, torch.nn.Parameter):
            return torch.nn.Parameter(made, requires_grad=value.requires_grad)
        return made.requires_grad_(value.requires_grad)

    grad = torch.is_grad_enabled()  # which leaving inference mode would turn on
    with torch.inference_mode(False), torch.set_grad_enabled(grad), tracing(TracingContext(mode)):
        yield [fixed(value) for value in inputs]


def _is_symbolic(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and not follows_from_data(size)


def _number(value: Any) -> Any:
    """Return the number behind a symbolic one, without a guard; anything else as it is."""
    return value.node.hint if isinstance(value, torch.SymInt) else value
