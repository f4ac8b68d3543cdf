"""From a captured graph to the structure of the denoiser: outlined blocks with their regions."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx

from soda_compile.analysis.data_sizes import refuse_data_sizes
from soda_compile.analysis.outline import Outlined, outline_blocks
from soda_compile.analysis.regions import find_regions
from soda_compile.analysis.token_axes import join_streams
from soda_compile.capture.forward import Holders
from soda_compile.capture.model import capture_graph, capture_model
from soda_compile.errors import CaptureError
from soda_compile.ir.aten_operators import graph_flops
from soda_compile.ir.captured import Captured
from soda_compile.ir.structure import BlockCall, BlockGraph, Structure
from soda_compile.passes.make_contiguous import MakeContiguous
from soda_compile.passes.manager import Pipeline
from soda_compile.passes.rejoin_slices import RejoinSlices
from soda_compile.torch_internals.wrapped_tensors import plain_tensors

log = logging.getLogger(__name__)


def analyse_model(
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    holders: Holders | None = None,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Structure:
    """Return the structure of a model, from one call of it: of the whole graph, or else of the one with its regions.

    See ``capture_model`` for the arguments and other errors.

    Raises:
        CaptureError: If the model's regions are not all in one graph, with the reason why it breaks.
    """
    call = capture_model(model, args, kwargs, holders, around)
    found = [analyse(graph) for graph in dict.fromkeys(run.captured for run in call.runs) if graph is not None]
    if call.reason is not None:
        found = [structure for structure in found if structure.region_names]
    if len(found) == 1 and (call.reason is None or is_graph_of(model, found[0])):
        return found[0]
    raise CaptureError(
        f"{type(model).__name__} cannot be captured as one graph, and no single other graph holds all its regions: "
        f"{call.reason}"
    ) from call.reason


def analyse_graph(module: fx.GraphModule, inputs: Sequence[Any], *, symbolic: bool = False) -> Structure | None:
    """Return the structure of a graph from Dynamo; None where the graph holds nothing to plan.

    A model that reads data on the host (the lengths of its texts) arrives in several graphs. The one with the blocks
    can be planned as if it were the whole model; the others run as they are.

    Args:
        module: The graph.
        inputs: Its example inputs.
        symbolic: See ``normalisation.capture``.

    Raises:
        CaptureError: If the graph is not supported, unless it is the small rest beside a graph break.
    """
    captured = capture_graph(module, inputs, symbolic=symbolic)
    if captured is None:
        return None
    structure = analyse(captured)
    if structure.region_names:
        return structure
    log.warning(
        "a graph of %d operators has no residual branch with heavy work in it and runs unplanned; if it is not the "
        "whole model, TORCH_LOGS=graph_breaks tells where the model breaks",
        len(module.graph.nodes),
    )
    return None


def is_graph_of(model: torch.nn.Module, structure: Structure) -> bool:
    """Return whether the parameters have their names in the model; in the graph of a block alone they would not."""
    owned = (*model.named_parameters(), *model.named_buffers())
    names = {path for name, value in owned for path, _ in plain_tensors(value, name)}
    return {path for path, mine in zip(structure.paths, structure.parameters, strict=True) if mine} <= names


def analyse(captured: Captured) -> Structure:
    """Outline the blocks of a captured denoiser and find the regions of each distinct block graph once.

    Raises:
        CaptureError: If the size of the residual stream, or of another value between blocks, depends on data.
    """
    notes = Pipeline((RejoinSlices(), MakeContiguous())).run(captured.graph).skipped
    blocks: dict[str, BlockGraph] = {}
    calls = []
    nodes = {node.name: node for node in captured.graph.nodes}
    for outlined in outline_blocks(captured.graph, captured.outputs):
        refuse_data_sizes(nodes[name] for name in outlined.inputs)
        if outlined.key not in blocks:
            blocks[outlined.key] = _analyse_block(outlined)
        calls.append(BlockCall(outlined.name, blocks[outlined.key], outlined.inputs, outlined.outputs))
    return Structure(
        calls=tuple(calls),
        inputs=captured.inputs,
        constants=captured.constants,
        outputs=captured.outputs,
        paths=captured.paths,
        parameters=captured.parameters,
        notes=notes,
        sizes=captured.sizes,
    )


def _analyse_block(outlined: Outlined) -> BlockGraph:
    graph = outlined.module.graph
    path = "" if outlined.name.startswith("(") else outlined.name.partition("#")[0]
    regions, notes = find_regions(graph, path)
    for region in regions:
        join_streams(graph, region)
    outlined.module.recompile()
    return BlockGraph(outlined.key, outlined.module, regions, notes, graph_flops(graph))
