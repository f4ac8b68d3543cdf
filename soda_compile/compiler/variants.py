"""Block variants: a block graph rewritten for what its regions do at a step, and joins of several in a row."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx

from soda_compile.analysis.outline import canonical_key
from soda_compile.analysis.token_axes import carries_of
from soda_compile.compiler.schedule import RegionMode
from soda_compile.ir.aten_operators import tensor_of
from soda_compile.ir.graphs import add_sizes, copy_graph, output_of, results_of
from soda_compile.ir.meta import meta_of
from soda_compile.ir.roles import Role, Size
from soda_compile.ir.slot_formats import FORMATS
from soda_compile.ir.structure import OUTPUT_KIND, STACK, BlockCall, BlockGraph, Note, Region
from soda_compile.passes.base import Pass
from soda_compile.passes.dead_code import DeadCode
from soda_compile.passes.insert_forecast import InsertForecast
from soda_compile.passes.insert_reuse import InsertReuse
from soda_compile.passes.keep_stream import KeepStream
from soda_compile.passes.manager import Pipeline
from soda_compile.passes.mix_output import MixOutput
from soda_compile.passes.narrow_linear import NarrowLinear
from soda_compile.passes.narrow_slots import NarrowSlots
from soda_compile.passes.prune_tokens import PruneTokens
from soda_compile.passes.sink_gathers import SinkGathers
from soda_compile.passes.track_tokens import TrackTokens
from soda_compile.passes.write_slots import WriteSlots
from soda_compile.torch_internals.size_expressions import Expression, for_any_sizes, with_size_nodes
from soda_compile.torch_internals.tracing import log_artifact


@dataclass(frozen=True, eq=False)
class Variant:
    """A block graph for one tuple of modes and the outputs that are needed.

    Attributes:
        graph: The rewritten graph; outputs that nothing needs are gone.
        inputs: For each placeholder the index of the block's input, or its role as slot or coefficients.
        outputs: For each result the index of the block's output, or its role as new content of a slot.
        skipped: What the passes left alone, and why.
    """

    graph: fx.Graph
    inputs: tuple[int | Role, ...]
    outputs: tuple[int | Role, ...]
    skipped: tuple[Note, ...]


@dataclass(frozen=True)
class CallRole:
    """A slot or coefficients of one call."""

    call: int
    role: Role


@dataclass(frozen=True, eq=False)
class Subgraph:
    """A graph that one compiled function runs: one block variant, or several in a row.

    Attributes:
        key: Hash of the canonical text; subgraphs with equal keys share compiled code.
        name: What it covers, for messages.
        graph: The graph.
        inputs: For each placeholder the name of a value, a slot or coefficients of a call, or a size.
        outputs: For each result the name of the value, or the slot of a call that takes it.
    """

    key: str
    name: str
    graph: fx.Graph
    inputs: tuple[str | CallRole | Size, ...]
    outputs: tuple[str | CallRole, ...]

    @property
    def sizes(self) -> dict[fx.Node, Size]:
        """Return the placeholders that take sizes, with what they take."""
        ends = zip(self.graph.find_nodes(op="placeholder"), self.inputs, strict=False)
        return {node: end for node, end in ends if isinstance(end, Size)}

    @property
    def module_over_tensors(self) -> fx.GraphModule:
        """Return the graph where its first inputs are empty tensors, whose first axes have the sizes that it takes."""
        return self._as_module(of_tensors=True)

    @cached_property
    def module(self) -> fx.GraphModule:
        """Return the graph with its Python code, which only what is compiled or run needs."""
        return self._as_module(of_tensors=False)

    def _as_module(self, of_tensors: bool) -> fx.GraphModule:
        sizes = {node: size.expression for node, size in self.sizes.items()}
        graph = with_size_nodes(self.graph, sizes, of_tensors=of_tensors) if sizes else self.graph
        return fx.GraphModule(self.graph.owning_module or torch.nn.Module(), graph)


def results_bytes(subgraphs: Iterable[Subgraph]) -> Expression:
    """Return the memory of all that subgraphs give, in terms of symbolic sizes; ``value_at`` makes it a number."""
    results = (tensor_of(node) for subgraph in subgraphs for node in results_of(subgraph.graph))
    return sum(math.prod(map(for_any_sizes, value.shape)) * value.element_size() for value in results)


def pipeline(block: BlockGraph, modes: Sequence[RegionMode]) -> Pipeline:
    """Return the passes that turn a block graph into a variant."""
    regions = tuple(enumerate(zip(block.regions, modes, strict=True)))
    rewrites = tuple(rewrite for index, (region, mode) in regions for rewrite in _rewrites(block, index, region, mode))
    sinks = tuple(SinkGathers(region) for _, (region, mode) in regions if mode.action.kind == "prune")
    narrow = tuple(
        NarrowSlots(index, region, FORMATS[mode.slot_dtype]) for index, (region, mode) in regions if mode.slot_dtype
    )
    if all(mode.computes for mode in modes):
        return Pipeline((*rewrites, DeadCode(), *narrow))
    return Pipeline((*rewrites, *sinks, DeadCode(), NarrowLinear(), DeadCode(), *narrow))


def _rewrites(block: BlockGraph, index: int, region: Region, mode: RegionMode) -> Iterable[Pass]:
    if mode.computes and region.kind == STACK:
        yield KeepStream(region)
    if mode.action.kind == "forecast" or mode.weighted:
        order = mode.action.order
        yield MixOutput(index, region, order) if region.kind == OUTPUT_KIND else InsertForecast(index, region, order)
    elif mode.action.kind == "reuse":
        yield InsertReuse(index, region)
    elif mode.action.kind == "prune":
        yield _prune(block, index, region, mode)
    elif mode.store:
        yield WriteSlots(index, region)
    if mode.computes and mode.track and mode.pruning is not None:
        yield TrackTokens(index, region, _carries(block, region), mode.pruning)


def _prune(block: BlockGraph, index: int, region: Region, mode: RegionMode) -> PruneTokens:
    assert mode.pruning is not None, "a plan that prunes says how"
    return PruneTokens(
        index,
        region,
        _carries(block, region),
        mode.action,
        mode.pruning,
        store=mode.store,
        in_place=mode.in_place,
        use=mode.use,
        track=mode.track,
    )


def _carries(block: BlockGraph, region: Region) -> tuple[str, ...]:
    carries = carries_of(block.module.graph, region)
    assert carries is not None, "program.build_program refuses such regions"
    return tuple(carry.name for carry in carries)


def make_variant(block: BlockGraph, modes: Sequence[RegionMode], needed: Sequence[bool]) -> Variant:
    """Rewrite a copy of a block graph; ``needed`` tells which of the block's outputs are read later."""
    graph = copy_graph(block.module.graph)
    sources = {node: index for index, node in enumerate(graph.find_nodes(op="placeholder"))}
    output = output_of(graph)
    output.args = (tuple(value for value, keep in zip(results_of(graph), needed, strict=True) if keep),)
    skipped = pipeline(block, modes).run(graph).skipped
    return Variant(
        graph=graph,
        inputs=tuple(
            meta_of(node)["role"] if "role" in node.meta else sources[node]
            for node in graph.find_nodes(op="placeholder")
        ),
        outputs=(*(index for index, keep in enumerate(needed) if keep), *meta_of(output).get("roles", ())),
        skipped=skipped,
    )


def join(calls: Sequence[tuple[int, BlockCall, Variant]], needed: set[str]) -> Subgraph:
    """Put the variants of consecutive calls into one graph.

    Args:
        calls: For each call its index in the structure, the call, and its variant.
        needed: Names of the values that something after these calls reads.
    """
    graph = fx.Graph()
    sources = [
        [call.inputs[source] if isinstance(source, int) else CallRole(index, source) for source in variant.inputs]
        for index, call, variant in calls
    ]
    inputs: dict[str | CallRole, fx.Node] = {}
    made: set[str] = set()
    for (_, call, variant), keys in zip(calls, sources, strict=True):
        for key, node in zip(keys, variant.graph.find_nodes(op="placeholder"), strict=True):
            if key not in made and key not in inputs:
                inputs[key] = graph.placeholder(node.name)
                inputs[key].target = inputs[key].name  # equal blocks have equal names; arguments must differ
                inputs[key].meta = {"val": node.meta["val"]}
        made |= {call.outputs[number] for number in variant.outputs if isinstance(number, int)}
    values: dict[str | CallRole, fx.Node] = dict(inputs)
    for (index, call, variant), keys in zip(calls, sources, strict=True):
        placeholders = variant.graph.find_nodes(op="placeholder")
        copies = {node: values[key] for key, node in zip(keys, placeholders, strict=True)}
        results = graph.graph_copy(variant.graph, copies)
        names = [call.outputs[to] if isinstance(to, int) else CallRole(index, to) for to in variant.outputs]
        values |= zip(names, results, strict=True)  # type: ignore[arg-type]
    stored = [CallRole(index, to) for index, _, variant in calls for to in variant.outputs if not isinstance(to, int)]
    outputs: list[str | CallRole] = [*(name for name in values if name in needed and name in made), *stored]
    graph.output(tuple(values[name] for name in outputs))
    sizes = add_sizes(graph)
    name = calls[0][1].name if len(calls) == 1 else f"{calls[0][1].name} to {calls[-1][1].name}"
    subgraph = Subgraph(canonical_key(graph), name, graph, (*inputs, *sizes), tuple(outputs))
    log_artifact(f"soda_subgraph_{subgraph.key}", lambda: f"# {name}\n{subgraph.module.code}")
    return subgraph
