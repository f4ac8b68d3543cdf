"""The backend "soda" of torch.compile: the road from Dynamo's graph to a planned denoiser."""

import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import fx

from soda_compile.backend.by_size import BySize
from soda_compile.backend.options import CUDA_GRAPHS, Options, check_options
from soda_compile.backend.prepared import PreparedDenoiser, prepare
from soda_compile.backend.variations import has_fitted, is_part, is_variation
from soda_compile.capture.scalars import keep_integers, with_tensors
from soda_compile.compiler.analyse import analyse_graph
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.observing import ObservedDenoiser, build_observed
from soda_compile.errors import CaptureError, OptionError, PlanError
from soda_compile.ir.structure import Structure
from soda_compile.plans.plan import Plan
from soda_compile.runtime.misses import Miss
from soda_compile.runtime.plain import PlainDenoiser
from soda_compile.torch_internals.backend_errors import errors_unwrapped
from soda_compile.torch_internals.inductor import compiler_probed, plain_inductor
from soda_compile.torch_internals.symbolic_sizes import fixed_sizes, lasting_copy, symbolic_inputs
from soda_compile.torch_internals.tracing import log_artifact
from soda_compile.torch_internals.wrapped_tensors import flatten_inputs, has_wrapped

log = logging.getLogger(__name__)

Made = PreparedDenoiser | ObservedDenoiser | Miss | None


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
    """
    checked = check_options(options, mode)
    if checked.plan is None and checked.observer is None:
        warnings.warn(
            "backend 'soda' has no plan and compiles with plain Inductor. Measure one with "
            "soda_compile.calibrate(model, generate), plan with soda_compile.plan(sensitivity, speedup=2), and pass "
            "options={'plan': plan}",
            stacklevel=2,
        )
        return _unplanned(module, inputs, checked)
    if has_wrapped(inputs):
        planned = _compile(module, inputs, checked)
        return lambda *wrapped: planned(*flatten_inputs(wrapped))
    inputs, integers = keep_integers(module, inputs)
    symbolic = symbolic_inputs(inputs)
    denoiser = _by_size(module, inputs, checked, symbolic) if symbolic else _compile(module, inputs, checked)
    return with_tensors(denoiser, integers) if integers else denoiser


@errors_unwrapped
def soda_plain(
    module: fx.GraphModule, inputs: Sequence[Any], *, options: Mapping[str, Any], miss: Miss
) -> Callable[..., Any]:
    """Backend for calls of a planned model that are known not to be covered by its plan; see ``soda``."""
    return _plain(module, inputs, check_options(options), miss)


def _by_size(
    module: fx.GraphModule, inputs: Sequence[Any], options: Options, symbolic: tuple[int, ...]
) -> Callable[..., Any]:
    """Compile for sizes like those at hand, and others when they come; what runs without the plan is one for all."""
    kept = lasting_copy(module)
    fixed_for = _why_fixed(options)

    def attempt(values: Sequence[Any]) -> Made:
        with fixed_sizes(values) as fixed:
            if fixed_for:
                return _attempt(kept, fixed, options)
            try:
                return _attempt(kept, fixed, options, symbolic=True)
            except (PlanError, OptionError):
                raise
            except Exception as error:  # whatever symbolic sizes break, fixed ones may not
                log.warning(
                    "the denoiser is compiled for each size on its own, as symbolic sizes failed: %s: %s",
                    type(error).__name__, error,
                )  # fmt: skip
        with fixed_sizes(values) as fixed:
            return _attempt(kept, fixed, options)

    def compile_for(values: Sequence[Any]) -> PreparedDenoiser | Callable[..., Any]:
        made = attempt(values)
        if made is None or isinstance(made, Miss):
            with fixed_sizes(values) as fixed:
                return _plain(kept, fixed, options, made)
        return made

    made = attempt(inputs)
    if made is None or isinstance(made, Miss):
        return _plain(module, inputs, options, made)
    if fixed_for:
        log.info("the denoiser is compiled for each size on its own: %s", fixed_for)
    return BySize(symbolic, compile_for).add(inputs, made)


def _why_fixed(options: Options) -> str:
    """Return why graphs are compiled for each size on its own; empty where they need not be."""
    if options.observer is not None:
        return "it is measured"
    if options.plan is not None and options.plan.pruning is not None and options.plan.pruning.score == "random":
        return "the plan prunes tokens by random scores, which are drawn for a number of tokens"
    return ""


def _compile(module: fx.GraphModule, inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    """Compile by the plan, or observed; what the plan does not cover runs without it, if the options allow that."""
    made = _attempt(module, inputs, options)
    if isinstance(made, PreparedDenoiser):
        return made.at({})
    return _plain(module, inputs, options, made) if made is None or isinstance(made, Miss) else made


def _attempt(module: fx.GraphModule, inputs: Sequence[Any], options: Options, *, symbolic: bool = False) -> Made:
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


def _unplanned(module: fx.GraphModule, inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    if options.lowering == "eager":
        return module.forward
    return plain_inductor(module, inputs, options.inductor)


def _plain(module: fx.GraphModule, inputs: Sequence[Any], options: Options, miss: Miss | None) -> Callable[..., Any]:
    """Compile without the plan; where it does not cover the graph, its calls are counted."""
    started = time.perf_counter()
    run = _unplanned(module, inputs, options)
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
