"""The backend "soda" of torch.compile: the road from Dynamo's graph to a planned denoiser."""

import functools
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from soda_compile.backend.attempt import attempt, plain, unplanned
from soda_compile.backend.options import Options, check_options
from soda_compile.backend.prepared import PreparedDenoiser
from soda_compile.backend.sized_graph import SizedGraph, why_fixed
from soda_compile.capture.scalars import keep_integers, with_tensors
from soda_compile.distributed.agreement import require_same_plan
from soda_compile.ir.aten_operators import collective_groups
from soda_compile.runtime.misses import Miss
from soda_compile.torch_internals.backend_errors import errors_unwrapped
from soda_compile.torch_internals.sharded_tensors import has_sharded, over_shards
from soda_compile.torch_internals.symbolic_sizes import symbolic_inputs
from soda_compile.torch_internals.wrapped_tensors import flatten_inputs, has_wrapped

log = logging.getLogger(__name__)


@errors_unwrapped
def soda(
    module: fx.GraphModule,
    inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Backend for ``torch.compile(denoiser, backend="soda", options={"plan": plan})``.

    Args:
        module: Graph from Dynamo.
        inputs: Example inputs; where Dynamo makes sizes symbolic, the graph is compiled by the plan for each size.
        options: See ``Options``.
        mode: A mode of ``torch.compile``; its settings go to Inductor.

    Raises:
        OptionError: For an unknown option; with ``on_miss="error"`` also for gradients that are asked for.
        PlanError: If the plan is for another model; with ``on_miss="error"`` also if it does not cover this call.
        CaptureError: If the graph is not supported.
        DistributedError: If ranks that share the model follow different plans.
    """
    checked = check_options(options, mode)
    if has_sharded(inputs):
        return over_shards(module, inputs, functools.partial(_compile_shards, options=checked))
    _require_same_plan(module, checked)
    if checked.plan is None and checked.observer is None:
        warnings.warn(
            "backend 'soda' has no plan and compiles with plain Inductor. With options={'speedup': 2.0} it observes "
            "generations and plans by itself; a plan of your own (soda_compile.calibrate, soda_compile.plan) goes into "
            "options={'plan': plan}",
            stacklevel=2,
        )
        return unplanned(module, inputs, checked)
    if has_wrapped(inputs):
        planned = _compile(module, inputs, checked)
        return lambda *wrapped: planned(*flatten_inputs(wrapped))
    inputs, integers = keep_integers(module, inputs)
    denoiser = (_by_size if symbolic_inputs(inputs) else _compile)(module, inputs, checked)
    return with_tensors(denoiser, integers) if integers else denoiser


@errors_unwrapped
def soda_plain(
    module: fx.GraphModule, inputs: Sequence[Any], *, options: Mapping[str, Any], miss: Miss
) -> Callable[..., Any]:
    """Backend for calls of a planned model that are known not to be covered by its plan; see ``soda``."""
    checked = check_options(options)
    if has_sharded(inputs):
        return over_shards(module, inputs, lambda graph, shards: soda_plain(graph, shards, options=options, miss=miss))
    require_same_plan(collective_groups(module.graph), "no plan")
    return plain(module, inputs, checked, miss)


def _require_same_plan(module: fx.GraphModule, options: Options) -> None:
    """Check that ranks that exchange values in this graph treat it alike; see ``require_same_plan``."""
    measured = "no plan, it is measured" if options.observer is not None else "no plan"
    require_same_plan(collective_groups(module.graph), options.plan.digest if options.plan is not None else measured)


def _compile_shards(module: fx.GraphModule, inputs: Sequence[Any], *, options: Options) -> Callable[..., Any]:
    """Compile the graph of one process of a tensor parallel model.

    Its weights are parts of those that a plan's fingerprint may be of, so that the regions alone are compared.
    """
    _require_same_plan(module, options)
    if options.plan is None and options.observer is None:
        return unplanned(module, inputs, options)
    plan = options.plan and replace(options.plan, fingerprint="")
    return _compile(module, inputs, replace(options, plan=plan))


def _by_size(module: fx.GraphModule, inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    """Compile for sizes like those at hand, and others when they come; what runs without the plan is one for all."""
    graph = SizedGraph.of(module, inputs)
    made = graph.attempt(inputs, options)
    if made is None or isinstance(made, Miss):
        return plain(module, inputs, options, made)
    if reason := why_fixed(options):
        log.info("the denoiser is compiled for each size on its own: %s", reason)
    return graph.by_size(options).add(inputs, made)


def _compile(module: fx.GraphModule, inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    """Compile by the plan, or observed; what the plan does not cover runs without it, if the options allow that."""
    made = attempt(module, inputs, options)
    if isinstance(made, PreparedDenoiser):
        return made.at({})
    return plain(module, inputs, options, made) if made is None or isinstance(made, Miss) else made
