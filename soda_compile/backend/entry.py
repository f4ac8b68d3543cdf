"""The backend "soda" of torch.compile: the road from Dynamo's graph to a planned denoiser."""

import functools
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import fx

from soda_compile.backend.options import CUDA_GRAPHS, Options, check_options
from soda_compile.compiler.analyse import analyse_graph
from soda_compile.compiler.bind import require_fit
from soda_compile.compiler.conditioning import separate_conditioning
from soda_compile.compiler.conditioning_stage import ConditioningStage, build_stage
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.observing import build_observed
from soda_compile.compiler.program import build_program
from soda_compile.errors import CaptureError, OptionError
from soda_compile.ir.structure import Structure
from soda_compile.plans.plan import Plan
from soda_compile.runtime.cuda_graphs import Recording
from soda_compile.runtime.denoiser import PlannedDenoiser
from soda_compile.runtime.memory import keep_freed_memory
from soda_compile.torch_internals.inductor import compiler_probed, plain_inductor
from soda_compile.torch_internals.tracing import log_artifact
from soda_compile.torch_internals.wrapped_tensors import flatten_inputs, has_wrapped

log = logging.getLogger(__name__)


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
        inputs: Example inputs; sizes become static, another shape compiles again.
        options: See ``Options``.
        mode: A mode of ``torch.compile``; its settings go to Inductor.

    Raises:
        OptionError: For an unknown option, or gradients that are asked for.
        PlanError: If the plan does not fit the model.
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
    _refuse_gradients(inputs)
    with compiler_probed(_device(inputs)) if checked.lowering == "inductor" else nullcontext():
        structure = analyse_graph(module, inputs)
    if structure is None:
        return _unplanned(module, inputs, checked)
    log_artifact("soda_structure", lambda: str(structure))
    # Inductor would record each subgraph on its own; the runtime records whole steps.
    changes = {CUDA_GRAPHS: False} if checked.cuda_graphs else {}
    lowering = Lowering({**checked.inductor, **changes}, target=checked.lowering)
    denoiser: Callable[..., Any]
    if checked.observer is not None:
        denoiser = build_observed(structure, checked.observer, lowering)
    else:
        assert checked.plan is not None
        denoiser = _planned(structure, checked.plan, checked, lowering)
    return (lambda *wrapped: denoiser(*flatten_inputs(wrapped))) if has_wrapped(inputs) else denoiser


def _unplanned(module: fx.GraphModule, inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    if options.lowering == "eager":
        return module.forward
    return plain_inductor(module, inputs, options.inductor)


def _planned(structure: Structure, plan: Plan, options: Options, lowering: Lowering) -> PlannedDenoiser:
    require_fit(plan, structure)
    log_artifact("soda_plan", lambda: str(plan))
    if True not in structure.parameters:
        raise CaptureError("the denoiser has no parameters, so its calls cannot be told from another model's")
    stage = None
    if options.conditioning == "trajectory":
        structure, stage = _conditioning_stage(structure, plan, lowering)
    build = functools.partial(build_program, structure, lowering=lowering, granularity=options.granularity)
    timestep = structure.paths.index(plan.timestep_input) if plan.timestep_input in structure.paths else None
    model_key = structure.parameters.index(True)
    keep_freed_memory(structure.regions[0].cuts[0].device)
    recording = Recording(structure.parameters) if options.cuda_graphs else None
    return PlannedDenoiser(build(plan), plan, model_key, timestep, options.clock, build, recording, stage)


def _conditioning_stage(
    structure: Structure, plan: Plan, lowering: Lowering
) -> tuple[Structure, ConditioningStage | None]:
    """Return what is left of the structure without its conditioning, and the stage that computes that."""
    split = separate_conditioning(structure)
    if split is None:
        log.warning(
            "option conditioning='trajectory' changes nothing: no matrix product depends on the timestep and pooled "
            "inputs alone, so there is nothing to compute ahead"
        )
        return structure, None
    conditioning, steps = split
    return steps, build_stage(conditioning, plan.steps, structure.weight_bytes, lowering)


def _device(inputs: Sequence[Any]) -> torch.device:
    return next((value.device for value in inputs if isinstance(value, torch.Tensor)), torch.device("cpu"))


def _refuse_gradients(inputs: Sequence[Any]) -> None:
    if torch.is_grad_enabled() and any(isinstance(value, torch.Tensor) and value.requires_grad for value in inputs):
        raise OptionError(
            "the denoiser is called with gradients enabled, but reused values have none. Call it under "
            "torch.no_grad() or torch.inference_mode()"
        )
