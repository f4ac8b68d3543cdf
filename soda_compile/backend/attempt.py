"""One attempt at a graph: by its plan, or observed; or why the plan does not cover it, and it runs without."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import fx

from soda_compile.backend.options import CUDA_GRAPHS, Options
from soda_compile.backend.prepared import PreparedDenoiser, prepare
from soda_compile.backend.variations import has_fitted, is_part, is_variation
from soda_compile.compiler.analyse import analyse_graph
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.observing import ObservedDenoiser, build_observed
from soda_compile.errors import CaptureError, OptionError, PlanError
from soda_compile.ir.structure import Structure
from soda_compile.plans.plan import Plan
from soda_compile.runtime.misses import Miss
from soda_compile.runtime.plain import PlainDenoiser
from soda_compile.torch_internals.inductor import compiler_probed, plain_inductor
from soda_compile.torch_internals.tracing import log_artifact

Made = PreparedDenoiser | ObservedDenoiser | Miss | None


def attempt(module: fx.GraphModule, inputs: Sequence[Any], options: Options, *, symbolic: bool = False) -> Made:
    """Compile by the plan, or observed; say why this graph is not covered, or None where it has nothing to plan."""
    plan, structure = options.plan, None
    try:
        _refuse_gradients(inputs)
        with compiler_probed(_device(inputs)) if options.lowering == "inductor" else nullcontext():
            structure = analyse_graph(module, inputs, symbolic=symbolic)
        if structure is None:
            return None
        log_artifact("soda_structure", lambda: str(structure))
        # Inductor would record each subgraph on its own; the runtime records whole steps.
        changes = {CUDA_GRAPHS: False} if options.cuda_graphs else {}
        lowering = Lowering({**options.inductor, **changes}, target=options.lowering)
        if options.observer is not None:
            return build_observed(structure, options.observer, lowering)
        assert plan is not None
        return prepare(structure, plan, options, lowering)
    except Miss as miss:  # an observer's
        return miss
    except (PlanError, CaptureError, OptionError) as error:
        if symbolic and isinstance(error, CaptureError):
            raise  # fixed sizes are tried next
        if plan is None or options.on_miss == "error" or not _is_miss(plan, structure, error):
            raise
        return Miss(_MISSES[type(error)], str(error))


_MISSES = {PlanError: "structure", CaptureError: "capture", OptionError: "gradients"}


def _is_miss(plan: Plan, structure: Structure | None, error: Exception) -> bool:
    """Return whether a plan that does not cover a graph is for its model all the same."""
    if structure is not None:
        return isinstance(error, PlanError) and (is_variation(plan, structure) or is_part(plan, structure))
    return isinstance(error, OptionError) or has_fitted(plan)


def unplanned(module: fx.GraphModule, inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    """Compile as ``torch.compile`` does by default, or not at all, as the options say."""
    if options.lowering == "eager":
        return module.forward
    return plain_inductor(module, inputs, options.inductor)


def plain(module: fx.GraphModule, inputs: Sequence[Any], options: Options, miss: Miss | None) -> Callable[..., Any]:
    """Compile without the plan; where it does not cover the graph, its calls are counted."""
    started = time.perf_counter()
    run = unplanned(module, inputs, options)
    if miss is None:
        return run
    weights = [index for index, value in enumerate(inputs) if isinstance(value, torch.nn.Parameter)]
    return PlainDenoiser(run, miss, weights[0] if weights else None, time.perf_counter() - started)


def _device(inputs: Sequence[Any]) -> torch.device:
    return next((value.device for value in inputs if isinstance(value, torch.Tensor)), torch.device("cpu"))


def _refuse_gradients(inputs: Sequence[Any]) -> None:
    if torch.is_grad_enabled() and any(isinstance(value, torch.Tensor) and value.requires_grad for value in inputs):
        raise OptionError(
            "the denoiser is called with gradients enabled, but reused values have none. Call it under "
            "torch.no_grad() or torch.inference_mode()"
        )
