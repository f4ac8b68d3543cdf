"""Gives tests the captured graph of a small module without compiling anything."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from soda_compile.analysis.regions import find_regions
from soda_compile.capture.normalisation import capture
from soda_compile.ir.captured import Captured
from soda_compile.ir.structure import Note, Region
from soda_compile.runtime.statistics import ModelStatistics, recorded


def trace(model: nn.Module, *args: Any, **kwargs: Any) -> Captured:
    """The graph that the backend would capture from this call."""
    return traces(model, 1, *args, **kwargs)[0]


def traces(model: nn.Module, times: int, *args: Any, **kwargs: Any) -> list[Captured]:
    """The graph that the backend would capture from this call, captured several times from what Dynamo gives once."""
    found: list[Captured] = []

    def look(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        found.extend(capture(module, inputs) for _ in range(times))
        return module.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=look, fullgraph=True, dynamic=False)(*args, **kwargs)
    return found


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def graph_of(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    """The captured graph of a function of tensors."""
    return fx.GraphModule(nn.Module(), trace(_Function(function), *inputs).graph)


def graphs_as_they_are(patch: pytest.MonkeyPatch) -> None:
    """Lets rewritten graphs run node by node, where what Inductor makes of them is not the point."""
    patch.setenv("SODA_COMPILE_LOWERING", "eager")


@contextmanager
def eager_graphs() -> Iterator[None]:
    """Rewritten graphs run node by node inside, and nothing that Dynamo kept comes in or goes out."""
    with pytest.MonkeyPatch.context() as patch:
        graphs_as_they_are(patch)
        torch._dynamo.reset()
        yield
    torch._dynamo.reset()


def statistics(model: nn.Module) -> ModelStatistics:
    """What the runtime keeps about a compiled model."""
    (found,) = recorded([*model.parameters(), *model.buffers()])
    return found


def regions_of(model: nn.Module, *args: Any) -> tuple[tuple[Region, ...], tuple[Note, ...]]:
    """Regions and notes of a module that is taken as one block."""
    return find_regions(trace(model, *args).graph)


def run(graph: fx.Graph, **inputs: Tensor) -> tuple[Any, ...]:
    """Interprets a graph; placeholders take the inputs of their names."""
    names = [node.name for node in graph.find_nodes(op="placeholder")]
    with torch.no_grad():
        return tuple(fx.Interpreter(fx.GraphModule(nn.Module(), graph)).run(*[inputs[name] for name in names]))


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters under the names that capture gives their placeholders."""
    return {"p_" + name.replace(".", "_"): parameter.detach() for name, parameter in model.named_parameters()}
