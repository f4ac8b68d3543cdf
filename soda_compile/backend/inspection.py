"""What the compiler sees in a model: its blocks and regions, without compiling."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from soda_compile.backend.graph_breaks import analyse_piece
from soda_compile.capture.normalisation import capture
from soda_compile.compiler.analyse import analyse
from soda_compile.errors import CaptureError
from soda_compile.ir.structure import Structure
from soda_compile.torch_internals.tracing import capture_failures

log = logging.getLogger(__name__)


def inspect(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Structure:
    """Captures a denoiser as the backend would and returns its structure. Runs it, in eager mode.

    Where Dynamo cannot capture the model as one graph, but all its regions are in one of the graphs, that graph's
    structure is returned and the reason is logged.

    Args:
        model: The denoiser.
        *args: As for one call of the model.
        **kwargs: As for one call of the model.

    Raises:
        CaptureError: If the model's regions are not all in one graph, with the reason why it breaks.
    """
    model = getattr(model, "_orig_mod", model)
    with torch.no_grad():
        try:
            return _whole(model, args, kwargs)
        except capture_failures():
            model(*args, **kwargs)  # some models make tables at their first call, which cannot be captured
        try:
            return _whole(model, args, kwargs)
        except capture_failures() as error:
            reason = error
        found = _pieces(model, args, kwargs)
    name = type(model).__name__
    if len(found) != 1 or not is_graph_of(model, found[0]):
        raise CaptureError(
            f"{name} cannot be captured as one graph, and no single other graph holds all its regions: {reason}"
        ) from reason
    log.warning("%s is captured in several graphs, of which one can be planned: %s", name, reason)
    return found[0]


def _whole(model: torch.nn.Module, args: Any, kwargs: Any) -> Structure:
    """The structure of the model as one graph."""
    found: list[Structure] = []

    def backend(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        found.append(analyse(capture(module, inputs)))
        return module.forward

    torch.compile(model, backend=backend, fullgraph=True, dynamic=False)(*args, **kwargs)
    return found[0]


def is_graph_of(model: torch.nn.Module, structure: Structure) -> bool:
    """Whether the parameters have their names in the model; in the graph of a block alone they would not."""
    names = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return {path for path, mine in zip(structure.paths, structure.parameters, strict=True) if mine} <= names


def _pieces(model: torch.nn.Module, args: Any, kwargs: Any) -> list[Structure]:
    """The structures of the graphs with regions."""
    found: list[Structure] = []

    def backend(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        if structure := analyse_piece(module, inputs):
            found.append(structure)
        return module.forward

    torch.compile(model, backend=backend, dynamic=False)(*args, **kwargs)
    return found
