"""The one way from a model to its graphs: what the backend, inspection, profiling and packages capture."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from soda_compile.capture.forward import CompiledForward, Holders, compile_forward
from soda_compile.capture.normalisation import capture
from soda_compile.capture.unwrapping import unwrap_inputs
from soda_compile.errors import CaptureError
from soda_compile.ir.captured import Captured
from soda_compile.torch_internals.symbolic_sizes import fixed_sizes
from soda_compile.torch_internals.tracing import SizeGuards, capture_failures, size_guards, source_name
from soda_compile.torch_internals.wrapped_tensors import flatten_inputs

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class GraphRun:
    """One run of one graph.

    Attributes:
        captured: The graph; None for what ``capture_graph`` gives None for.
        inputs: The very values that went in, plain tensors and numbers, one for each input of the graph.
        outputs: The very values that came out.
        guards: What Dynamo takes for granted about symbolic sizes of the inputs, by their position and axis.
    """

    captured: Captured | None
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    guards: SizeGuards


@dataclass(frozen=True, eq=False)
class CapturedCall:
    """One call of a model.

    Attributes:
        runs: Runs of its graphs in order; one where the model is captured whole.
        result: What the call returned.
        reason: Why the model is captured in several graphs; None where it is captured whole.
    """

    runs: tuple[GraphRun, ...]
    result: Any
    reason: Exception | None


def capture_graph(module: fx.GraphModule, inputs: Sequence[Any], *, symbolic: bool = False) -> Captured | None:
    """Capture a graph from Dynamo over plain tensors.

    Args:
        module: What Dynamo hands to a backend: parameters are inputs.
        inputs: Example inputs; a tensor subclass becomes, where it stands, the plain tensors inside.
        symbolic: See ``normalisation.capture``.

    Returns:
        The graph; None for the small rest beside a graph break that is not supported.

    Raises:
        CaptureError: If any other graph is not supported.
    """
    try:
        return capture(*unwrap_inputs(module, inputs), symbolic=symbolic)
    except CaptureError as error:
        if not _is_rest(module):
            raise
        log.warning("a part of the model beside a graph break runs unplanned: %s", error)
        return None


def capture_model(
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    holders: Holders | None = None,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
    *,
    symbolic: bool = False,
) -> CapturedCall:
    """Capture one call of a model as the backend would; run it in eager mode, without gradients.

    Args:
        model: The model.
        args: Arguments of the call by position.
        kwargs: Arguments of the call by name.
        holders: Where the model's forward may be kept, to run it within the hooks on it; None leaves hooks out.
        around: Makes the context of the call.
        symbolic: Whether sizes that Dynamo makes symbolic stay so; it does for axes that are marked as dynamic.

    Raises:
        CaptureError: If Dynamo cannot capture the model, or a graph is not supported.
        OptionError: If hooks are to be run, but the model's forward is replaced already.
    """
    runs: list[GraphRun] = []

    def backend(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        with fixed_sizes(inputs) if symbolic else nullcontext(inputs) as given:
            captured = capture_graph(module, given, symbolic=symbolic)

        fakes = [_value(node) for node in module.graph.find_nodes(op="placeholder")]
        sizes = {(number, axis): size for number, fake in enumerate(fakes) for axis, size in _varying(fake)}

        def run(*values: Any) -> Any:
            outputs = module.forward(*values)
            # Only now Dynamo has seen all of the model.
            runs.append(GraphRun(captured, flatten_inputs(values), outputs, size_guards(sizes)))
            return outputs

        return run

    alone = nullcontext(CompiledForward(model, backend, around))
    with torch.no_grad(), compile_forward(model, backend, around, holders) if holders else alone as compiled:
        try:
            result = (model if holders else compiled)(*args, **kwargs)
        except capture_failures() as error:
            raise CaptureError(f"{type(model).__name__} cannot be captured: {error}") from error
    if not runs:
        raise CaptureError(f"{type(model).__name__} calls no operator, so there is no graph")
    return CapturedCall(tuple(runs), result, compiled.reason)


def _varying(value: Any) -> list[tuple[int, torch.SymInt]]:
    shape: Sequence[Any] = value.shape if isinstance(value, torch.Tensor) else ()
    return [(axis, size) for axis, size in enumerate(shape) if isinstance(size, torch.SymInt)]


def _is_rest(module: fx.GraphModule) -> bool:
    """Return whether the graph is a part beside a graph break: it reads values on Python's stack, or returns sizes."""
    outputs: Any = module.graph.output_node().args[0]
    reads = any("___stack" in source_name(node) for node in module.graph.find_nodes(op="placeholder"))
    return reads or any(isinstance(_value(output), int | torch.SymInt) for output in outputs)


def _value(output: Any) -> Any:
    return output.meta.get("example_value") if isinstance(output, fx.Node) else output
