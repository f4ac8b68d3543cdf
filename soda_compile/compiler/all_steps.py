"""Conditioning of all steps of a trajectory in one go: its subgraphs, with the steps as another axis."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from soda_compile.compiler.steps import StepBuilder, StepSubgraphs
from soda_compile.compiler.variants import Subgraph
from soda_compile.errors import CaptureError
from soda_compile.ir.aten_operators import tensor_bytes
from soda_compile.ir.graphs import results_of
from soda_compile.ir.structure import Structure
from soda_compile.torch_internals.inductor import add_axis

log = logging.getLogger(__name__)

MOST = 1.0
"""How much memory conditioning may take, over that of the weights."""


@dataclass(frozen=True, eq=False)
class AllSteps:
    """What computes the conditioning of all steps.

    Attributes:
        subgraphs: In order; names of values that differ between steps stand for all of them, stacked.
        values: Names of the values that steps read.
        memory_bytes: Of what the subgraphs give.
    """

    subgraphs: tuple[Subgraph, ...]
    values: tuple[str, ...]
    memory_bytes: int


def all_steps(structure: Structure, builder: StepBuilder, steps: Sequence[StepSubgraphs]) -> AllSteps | None:
    """The conditioning that any of these steps reads; None where there is none, or too much.

    Some models condition each token: for all steps that can be more than the model itself.
    """
    apart = structure.conditioning
    if not apart:
        return None
    read = {
        source
        for step in steps
        for subgraph in step.subgraphs
        if not is_conditioning(structure, subgraph)
        for source in subgraph.inputs
        if isinstance(source, str) and source in apart
    }
    differ = apart.union(structure.conditions)
    alone = builder.conditioning(read)
    kept = len(steps) * sum(tensor_bytes(node) for subgraph in alone for node in results_of(subgraph.module.graph))
    if kept > MOST * structure.weight_bytes:
        log.warning(
            "conditioning is computed at each step: for all %d it takes %.0f MB, and the weights %.0f MB",
            len(steps), kept / 1e6, structure.weight_bytes / 1e6,
        )  # fmt: skip
        return None
    subgraphs = tuple(_stacked(subgraph, len(steps), differ) for subgraph in alone)
    return AllSteps(subgraphs, tuple(sorted(read)), kept)


def is_conditioning(structure: Structure, subgraph: Subgraph) -> bool:
    """Whether a subgraph does nothing but conditioning."""
    return bool(subgraph.outputs) and all(name in structure.conditioning for name in subgraph.outputs)


def stacked(name: str) -> str:
    """Name of the values of all steps."""
    return f"{name} of all steps"


def _stacked(subgraph: Subgraph, steps: int, differ: frozenset[str]) -> Subgraph:
    """The subgraph for all steps, first axis of what differs between them."""
    batched = [name in differ for name in subgraph.inputs]
    try:
        module = add_axis(subgraph.module, steps, batched)
    except RuntimeError as error:
        raise CaptureError(
            f"{subgraph.name} cannot be computed for all steps at once: {error}. Compile with conditioning='step'"
        ) from error
    return Subgraph(
        key=f"{subgraph.key} {steps} {batched}",
        name=f"{subgraph.name}, {steps} steps",
        module=module,
        inputs=tuple(_renamed(name, differ) for name in subgraph.inputs),
        outputs=tuple(_renamed(name, differ) for name in subgraph.outputs),
    )


def _renamed(name: object, differ: frozenset[str]) -> str:
    assert isinstance(name, str), "conditioning has no slots"
    return stacked(name) if name in differ else name
