"""Graph breaks: what of a model that Dynamo hands over in several graphs can be planned."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import fx

from soda_compile.capture.normalisation import capture
from soda_compile.compiler.analyse import analyse
from soda_compile.errors import CaptureError
from soda_compile.ir.structure import Structure
from soda_compile.torch_internals.tracing import source_name

log = logging.getLogger(__name__)


def analyse_piece(module: fx.GraphModule, inputs: Sequence[Any]) -> Structure | None:
    """The structure of a graph from Dynamo, or None where the graph holds nothing to plan.

    A model that reads data on the host (the lengths of its texts) arrives in several graphs. The one with the blocks
    can be planned as if it were the whole model; the others run as they are.

    Raises:
        CaptureError: If the graph is not supported, unless it is the small rest behind a graph break.
    """
    try:
        structure = analyse(capture(module, inputs))
    except CaptureError as error:
        if not is_rest(module):
            raise
        log.warning("a part of the model behind a graph break runs unplanned: %s", error)
        return None
    if structure.region_names:
        return structure
    log.warning(
        "a graph of %d operators has no residual branch with heavy work in it and runs unplanned; if it is not the "
        "whole model, TORCH_LOGS=graph_breaks tells where the model breaks",
        len(module.graph.nodes),
    )
    return None


def is_rest(module: fx.GraphModule) -> bool:
    """Whether Dynamo traced the graph after a graph break: it then reads values that were on Python's stack."""
    return any("___stack" in source_name(node) for node in module.graph.find_nodes(op="placeholder"))
