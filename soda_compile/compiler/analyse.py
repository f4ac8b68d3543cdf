"""From a captured graph to the structure of the denoiser: outlined blocks with their regions."""

from __future__ import annotations

from soda_compile.analysis.outline import Outlined, outline_blocks
from soda_compile.analysis.regions import find_regions
from soda_compile.analysis.token_axes import join_streams
from soda_compile.ir.aten_operators import graph_flops
from soda_compile.ir.captured import Captured
from soda_compile.ir.structure import BlockCall, BlockGraph, Structure
from soda_compile.passes.make_contiguous import MakeContiguous
from soda_compile.passes.manager import Pipeline


def analyse(captured: Captured) -> Structure:
    """Outline the blocks of a captured denoiser and find the regions of each distinct block graph once."""
    notes = Pipeline((MakeContiguous(),)).run(captured.graph).skipped
    blocks: dict[str, BlockGraph] = {}
    calls = []
    for outlined in outline_blocks(captured.graph, captured.outputs):
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
    )


def _analyse_block(outlined: Outlined) -> BlockGraph:
    graph = outlined.module.graph
    path = "" if outlined.name.startswith("(") else outlined.name.partition("#")[0]
    regions, notes = find_regions(graph, path)
    for region in regions:
        join_streams(graph, region)
    outlined.module.recompile()
    return BlockGraph(outlined.key, outlined.module, regions, notes, graph_flops(graph))
