"""Reasons, region by region: whether tokens can be pruned there, and where the choice of tokens stops."""

from soda_compile.analysis.token_axes import carries_of, pruning_faults
from soda_compile.ir.graphs import copy_graph
from soda_compile.ir.structure import BlockGraph, Note, Structure
from soda_compile.passes.manager import Pipeline
from soda_compile.passes.prune_tokens import PruneTokens
from soda_compile.passes.sink_gathers import SinkGathers
from soda_compile.plans.actions import prune
from soda_compile.plans.pruning import Pruning

RATE = 0.5  # of the trial; where the choice of tokens stops does not depend on it


def why(structure: Structure) -> tuple[Note, ...]:
    """Return for each region of each distinct block what pruning it comes to, and where the choice of tokens stops.

    The passes that prune are tried on a copy of the block.
    """
    notes: dict[str, list[Note]] = {}
    faults = iter(pruning_faults(structure))
    for call in structure.calls:
        names = [(index, name, next(faults)) for index, name in enumerate(call.region_names)]
        if call.block.key not in notes:
            notes[call.block.key] = [
                Note(name, reason) for index, name, fault in names for reason in _reasons(call.block, index, fault)
            ]
    return tuple(note for found in notes.values() for note in found)


def _reasons(block: BlockGraph, index: int, fault: str) -> tuple[str, ...]:
    if fault:
        return (f"cannot be pruned: {fault}",)
    region, graph = block.regions[index], copy_graph(block.module.graph)
    names = tuple(carry.name for carry in carries_of(graph, region) or ())
    trial = PruneTokens(index, region, names, prune(RATE), Pruning("feature_mean"))
    result = Pipeline((trial, SinkGathers(region)), observers=()).run(graph)
    kept = result.changed[-1].rpartition(": ")[2]
    return (
        f"can be pruned; at rate {RATE} it {kept}",
        *(f"tokens are taken at {note.reason}" for note in result.skipped),
    )
