"""Compares a pruned branch with the full branch at the same tokens, for every region of a model.

Run this file to print the table of docs/pruning.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from soda_compile.analysis.token_axes import carries_of
from soda_compile.compiler.analyse import analyse
from soda_compile.ir.aten_operators import graph_flops
from soda_compile.ir.graphs import copy_graph
from soda_compile.ir.structure import BlockGraph, Structure
from soda_compile.passes.dead_code import DeadCode
from soda_compile.passes.narrow_linear import NarrowLinear
from soda_compile.passes.prune_tokens import PruneTokens
from soda_compile.passes.sink_gathers import SinkGathers
from soda_compile.plans.actions import prune
from soda_compile.plans.pruning import Pruning

CLASSES = (
    "DiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "CogVideoXTransformer3DModel",
    "WanTransformer3DModel",
    "LatteTransformer3DModel",
    "QwenImageTransformer2DModel",
    "HunyuanVideoTransformer3DModel",
    "LTXVideoTransformer3DModel",
)
MERGED = "token groups are put together here"  # those of a joint feed-forward, before its first linear


@dataclass(frozen=True)
class Branch:
    """What became of one region.

    Attributes:
        region: Full name.
        prunable: Whether its tokens can be ranked.
        difference: Largest difference between the pruned and the full branch, over all outputs of the block.
        kept: Share of the region's FLOPs that is left when half of the tokens are computed.
        stops: Why the gather did not sink further.
    """

    region: str
    prunable: bool
    difference: float = 0.0
    kept: float = 1.0
    stops: tuple[str, ...] = ()


def pruned_branches(structure: Structure, rate: float = 0.5) -> Iterator[Branch]:
    """All regions of all distinct blocks."""
    seen: set[str] = set()
    for call in structure.calls:
        if call.block.key not in seen:
            seen.add(call.block.key)
            for index, name in enumerate(call.region_names):
                yield _branch(call.block, index, name, rate)


def _branch(block: BlockGraph, index: int, name: str, rate: float) -> Branch:
    region = block.regions[index]
    carries = carries_of(block.module.graph, region)
    if carries is None:
        return Branch(name, prunable=False)
    full = copy_graph(block.module.graph)
    PruneTokens(index, region, tuple(carry.name for carry in carries), prune(rate), Pruning("random")).apply(full)
    sunk = _copy(full)
    result = SinkGathers(region).apply(sunk)
    for step in (DeadCode(), NarrowLinear(), DeadCode()):
        step.apply(sunk)
    sunk.lint()
    kept = (graph_flops(sunk) - block.flops + region.flops) / region.flops
    return Branch(name, True, _difference(full, sunk), kept, tuple(note.reason for note in result.skipped))


def _copy(graph: fx.Graph) -> fx.Graph:
    """A copy in which what a gather takes names nodes of the copy."""
    copy = copy_graph(graph)
    nodes = {node.name: node for node in copy.nodes}
    for node in graph.nodes:
        if tokens := node.meta.get("tokens"):
            index = nodes[tokens.index.name] if tokens.index is not None else None
            nodes[node.name].meta["tokens"] = replace(tokens, index=index)
    return copy


def _difference(full: fx.Graph, sunk: fx.Graph) -> float:
    generator = torch.Generator().manual_seed(0)
    inputs = {node.name: _random(node.meta["val"], generator) for node in full.find_nodes(op="placeholder")}
    results = []
    for graph in (full, sunk):
        values = [inputs[node.name] for node in graph.find_nodes(op="placeholder")]
        with torch.no_grad():
            results.append(fx.Interpreter(fx.GraphModule(nn.Module(), graph)).run(*values))
    return max((a.double() - b.double()).abs().max().item() for a, b in zip(*results, strict=True))


def _random(value: object, generator: torch.Generator) -> object:
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype.is_floating_point:
        return torch.randn(value.shape, generator=generator, dtype=value.dtype)
    if value.dtype.is_complex:
        return torch.view_as_complex(torch.randn(*value.shape, 2, generator=generator)).to(value.dtype)
    return torch.zeros(value.shape, dtype=value.dtype)


def table() -> str:
    from models.catalogue import DENOISERS
    from tracing import trace

    lines = ["| model | region | work kept at half of the tokens | why sinking stopped |", "|---|---|---|---|"]
    for name in CLASSES:
        model, inputs = DENOISERS[name].build()
        for branch in pruned_branches(analyse(trace(model, **inputs))):
            lines.append(f"| {name} | {branch.region} | {branch.kept:.0%} | {'; '.join(branch.stops) or '-'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.manual_seed(0)
    print(table())
