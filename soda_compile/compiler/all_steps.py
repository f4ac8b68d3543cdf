"""Conditioning of all steps of a trajectory in one go: its pieces, with the steps as another axis."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from soda_compile.compiler.steps import StepBuilder, StepPieces
from soda_compile.compiler.variants import Piece
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
        pieces: In order; names of values that differ between steps stand for all of them, stacked.
        values: Names of the values that steps read.
        memory_bytes: Of what the pieces give.
    """

    pieces: tuple[Piece, ...]
    values: tuple[str, ...]
    memory_bytes: int


def all_steps(structure: Structure, builder: StepBuilder, steps: Sequence[StepPieces]) -> AllSteps | None:
    """The conditioning that any of these steps reads; None where there is none, or too much.

    Some models condition each token: for all steps that can be more than the model itself.
    """
    apart = structure.conditioning
    if not apart:
        return None
    read = {
        source
        for step in steps
        for piece in step.pieces
        if not is_conditioning(structure, piece)
        for source in piece.inputs
        if isinstance(source, str) and source in apart
    }
    differ = apart.union(structure.conditions)
    alone = builder.conditioning(read)
    kept = len(steps) * sum(tensor_bytes(node) for piece in alone for node in results_of(piece.module.graph))
    if kept > MOST * structure.weight_bytes:
        log.warning(
            "conditioning is computed at each step: for all %d it takes %.0f MB, and the weights %.0f MB",
            len(steps), kept / 1e6, structure.weight_bytes / 1e6,
        )  # fmt: skip
        return None
    pieces = tuple(_stacked(piece, len(steps), differ) for piece in alone)
    return AllSteps(pieces, tuple(sorted(read)), kept)


def is_conditioning(structure: Structure, piece: Piece) -> bool:
    """Whether a piece does nothing but conditioning."""
    return bool(piece.outputs) and all(name in structure.conditioning for name in piece.outputs)


def stacked(name: str) -> str:
    """Name of the values of all steps."""
    return f"{name} of all steps"


def _stacked(piece: Piece, steps: int, differ: frozenset[str]) -> Piece:
    """The piece for all steps, first axis of what differs between them."""
    batched = [name in differ for name in piece.inputs]
    try:
        module = add_axis(piece.module, steps, batched)
    except RuntimeError as error:
        raise CaptureError(
            f"{piece.name} cannot be computed for all steps at once: {error}. Compile with conditioning='step'"
        ) from error
    return Piece(
        key=f"{piece.key} {steps} {batched}",
        name=f"{piece.name}, {steps} steps",
        module=module,
        inputs=tuple(_renamed(name, differ) for name in piece.inputs),
        outputs=tuple(_renamed(name, differ) for name in piece.outputs),
    )


def _renamed(name: object, differ: frozenset[str]) -> str:
    assert isinstance(name, str), "conditioning has no slots"
    return stacked(name) if name in differ else name
