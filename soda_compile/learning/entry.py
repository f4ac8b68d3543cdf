"""The backend "soda" of torch.compile, as its entry point names it: by a plan, or by one that it makes itself."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from soda_compile.backend import entry
from soda_compile.backend.attempt import unplanned
from soda_compile.backend.options import check_options
from soda_compile.backend.sized_graph import SizedGraph
from soda_compile.capture.scalars import keep_integers, with_tensors
from soda_compile.errors import OptionError
from soda_compile.ir.aten_operators import collective_groups
from soda_compile.learning.denoiser import LearningDenoiser
from soda_compile.learning.wish import take_wish
from soda_compile.torch_internals.backend_errors import errors_unwrapped
from soda_compile.torch_internals.sharded_tensors import has_sharded
from soda_compile.torch_internals.wrapped_tensors import has_wrapped

log = logging.getLogger(__name__)


@errors_unwrapped
def soda(
    module: fx.GraphModule,
    inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Backend for ``torch.compile(denoiser, backend="soda", options={"speedup": 2.0})``, or ``{"plan": plan}``.

    With a goal instead of a plan, the first generations run without one and are observed. Then the backend plans, and
    compiles beside the generations that go on; those that begin after that follow the plan. What was measured is
    stored, and the next process begins with it.

    Args:
        module: Graph from Dynamo.
        inputs: Example inputs.
        options: See ``Wish``, and ``Options`` of the backend.
        mode: A mode of ``torch.compile``; its settings go to Inductor.

    Raises:
        OptionError: For an unknown option, one that contradicts another, or a goal where processes share the model.
        PlanError: If the plan is for another model; with ``on_miss="error"`` also if it does not cover this call.
        CaptureError: If the graph is not supported.
    """
    wish, rest = take_wish(options or {})
    if wish is None:
        planned: Callable[..., Any] = entry.soda(module, inputs, options=options, mode=mode)
        return planned
    checked = check_options(rest, mode)
    _require_unshared(module, inputs)
    weights = tuple(index for index, value in enumerate(inputs) if isinstance(value, torch.nn.Parameter))
    if not weights or has_wrapped(inputs):
        kind = "tensor subclasses, such as quantised weights" if weights else "no parameters"
        log.warning(
            "a graph has %s, so its generations are not observed, and it runs without a plan; measure it with "
            "soda_compile.calibrate", kind,
        )  # fmt: skip
        return unplanned(module, inputs, checked)
    inputs, integers = keep_integers(module, inputs)
    denoiser = LearningDenoiser(wish, SizedGraph.of(module, inputs), checked, weights, _numbers(module, inputs))
    latest = denoiser.learner(inputs).latest
    if latest is None or latest.plan is None:
        denoiser.unplanned = unplanned(module, inputs, checked)
    return with_tensors(denoiser, integers) if integers else denoiser


def _require_unshared(module: fx.GraphModule, inputs: Sequence[Any]) -> None:
    """Check that no other process has a part of the model: each would plan at a time of its own.

    Raises:
        OptionError: One has.
    """
    if has_sharded(inputs) or collective_groups(module.graph):
        raise OptionError(
            "several processes share this model, and each would measure a part of it and plan by itself; measure with "
            "soda_compile.calibrate(model, generate, model_group=group), plan with soda_compile.plan(..., "
            "process_group=group), and pass options={'plan': plan}"
        )


def _numbers(module: fx.GraphModule, inputs: Sequence[Any]) -> dict[int, str]:
    """Return the inputs that may be one number, by index: the timestep is among them."""
    nodes = module.graph.find_nodes(op="placeholder")
    return {
        index: node.name
        for index, (node, value) in enumerate(zip(nodes, inputs, strict=True))
        if not isinstance(value, torch.nn.Parameter) and (not isinstance(value, torch.Tensor) or value.ndim <= 1)
    }
