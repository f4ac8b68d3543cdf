"""Takes conditioning out of the blocks: what follows from the timestep and other small inputs alone.

Modulations (adaLN) are products of a few rows with large weights, so their time goes to reading weights and launching
kernels. Apart from the rest they can be computed for all steps of a trajectory at once.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from soda_compile.ir.aten_operators import QUANTISED, graph_flops, holds_tensor, is_heavy, packet
from soda_compile.ir.graphs import add_call, copy_graph, find_node, output_of, results_of
from soda_compile.ir.structure import BlockCall, BlockGraph, Structure
from soda_compile.passes.dead_code import DeadCode
from soda_compile.passes.manager import Pipeline

aten = torch.ops.aten


class Source(enum.IntEnum):
    """What a value follows from; of several, the last counts."""

    WEIGHTS = 0  # weights and constants
    SETTING = 1  # inputs of two axes too, such as pooled texts
    TIMESTEP = 2  # inputs of at most one axis too, a number for each sample: the timestep, labels, guidance
    SAMPLE = 3  # the latents, the text


@dataclass(frozen=True, eq=False)
class _Split:
    """A block graph in two.

    Attributes:
        conditioning: Gives the values that conditioning is cut at, and those results of the block that are
            conditioning themselves.
        rest: The block, with the former as inputs after its own.
        cuts: Names of the nodes cut at.
        results: Indices of the block's outputs that the first part gives.
    """

    conditioning: BlockGraph
    rest: BlockGraph
    cuts: tuple[str, ...]
    results: tuple[int, ...]


def separate_conditioning(structure: Structure) -> Structure:
    """The same denoiser, with its conditioning in calls of their own before all others.

    Each block graph is cut behind the last products of its conditioning; cheaper operators after them (chunks, the 1
    of ``1 + scale``) stay in the block, where they cost nothing.

    Returns:
        The new structure; the same one if it has no such products, or what can be reused is itself conditioning.
    """
    sources = _input_sources(structure)
    splits: dict[tuple[str, tuple[Source, ...]], _Split | None] = {}
    front: list[BlockCall] = []
    rest: list[BlockCall] = []
    for call in structure.calls:
        given = tuple(sources[name] for name in call.inputs)
        key = (call.block.key, given)
        if key not in splits:
            splits[key] = _split(call.block, given)
        split = splits[key]
        if split is None:
            rest.append(call)
            sources |= dict.fromkeys(call.outputs, Source.SAMPLE)
            continue
        of_results = [call.outputs[index] for index in split.results]
        sources |= dict.fromkeys(call.outputs, Source.SAMPLE) | dict.fromkeys(of_results, Source.TIMESTEP)
        cut_names = [f"{call.name}/{cut}" for cut in split.cuts]
        front.append(_call(f"{call.name} (conditioning)", split.conditioning, call, (), (*cut_names, *of_results)))
        others = [name for name in call.outputs if name not in of_results]
        rest.append(_call(call.name, split.rest, call, cut_names, others))
    if not any(split and split.conditioning.flops for split in splits.values()) or _reuses_conditioning(splits):
        return structure
    reads = {name for call in front for name in call.inputs}
    conditions = tuple(
        name for name in structure.inputs if name in reads and sources[name] in (Source.SETTING, Source.TIMESTEP)
    )
    calls = (*front, *rest)
    return dataclasses.replace(structure, calls=calls, conditioning_calls=len(front), conditions=conditions)


def _call(name: str, block: BlockGraph, whole: BlockCall, cuts: Iterable[str], outputs: Iterable[str]) -> BlockCall:
    """A call of a part of a block: inputs of the block that the part still has, then the cuts."""
    known = dict(zip(_names(whole.block.module.graph), whole.inputs, strict=True))
    kept = [known[name] for name in _names(block.module.graph) if name in known]
    return BlockCall(name, block, (*kept, *cuts), tuple(outputs))


def _names(graph: fx.Graph) -> list[str]:
    return [node.name for node in graph.find_nodes(op="placeholder")]


def _input_sources(structure: Structure) -> dict[str, Source]:
    """What the caller passes, and constants."""
    found = dict.fromkeys(structure.constants, Source.WEIGHTS)
    for name, parameter in zip(structure.inputs, structure.parameters, strict=True):
        value = structure.read_values.get(name)
        if parameter:
            found[name] = Source.WEIGHTS
        elif not isinstance(value, torch.Tensor) or value.ndim > 2:
            found[name] = Source.SAMPLE
        else:
            found[name] = Source.TIMESTEP if value.ndim < 2 else Source.SETTING
    return found


def _split(block: BlockGraph, given: tuple[Source, ...]) -> _Split | None:
    """Cuts a block graph in two; None where no conditioning passes through it."""
    graph = copy_graph(block.module.graph)
    _name_dtypes(graph)
    sources = _node_sources(graph, given)
    results = tuple(index for index, node in enumerate(results_of(graph)) if sources[node] is Source.TIMESTEP)
    cuts = _cuts(graph, sources)
    if not cuts and not results:
        return None
    digest = hashlib.sha256(f"{block.key} {given}".encode()).hexdigest()[:16]
    return _Split(
        conditioning=_conditioning_part(graph, cuts, results, f"{digest}c"),
        rest=_rest_part(block, graph, cuts, results, f"{digest}r"),
        cuts=cuts,
        results=results,
    )


def _name_dtypes(graph: fx.Graph) -> None:
    """Names the dtype where an operator takes it from a tensor: a cast to the text's dtype needs no text."""
    for node in graph.find_nodes(op="call_function", target=aten.type_as.default):
        with graph.inserting_before(node):
            cast = add_call(graph, aten._to_copy.default, node.args[0], dtype=node.meta["val"].dtype)
        node.replace_all_uses_with(cast)
        graph.erase_node(node)


def _node_sources(graph: fx.Graph, given: tuple[Source, ...]) -> dict[fx.Node, Source]:
    sources = dict(zip(graph.find_nodes(op="placeholder"), given, strict=True))
    for node in graph.nodes:
        if node.op == "call_function":
            of_inputs = max((sources[source] for source in node.all_input_nodes), default=Source.WEIGHTS)
            sources[node] = of_inputs if _is_plain(node) else Source.SAMPLE
    return sources


def _is_plain(node: fx.Node) -> bool:
    """Whether the node gives the same for the same inputs, static shapes, and treats all steps alike."""
    if isinstance(node.target, torch._ops.HigherOrderOperator) or packet(node) in QUANTISED:
        return False
    tags = getattr(node.target, "tags", ())
    unruly = (torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    return not any(tag in tags for tag in unruly)


def _cuts(graph: fx.Graph, sources: Mapping[fx.Node, Source]) -> tuple[str, ...]:
    """Products of the conditioning that the rest reads through cheaper operators at most."""
    exposed: set[fx.Node] = set()
    cuts = []
    for node in reversed(graph.nodes):
        if sources.get(node) is not Source.TIMESTEP:
            continue
        readers = [user for user in node.users if user.op != "output"]
        if any(sources[user] is not Source.TIMESTEP or user in exposed for user in readers):
            if node.op == "call_function" and is_heavy(node) and holds_tensor(node):
                cuts.append(node.name)
            else:
                exposed.add(node)
    return tuple(reversed(cuts))


def _conditioning_part(graph: fx.Graph, cuts: tuple[str, ...], results: tuple[int, ...], key: str) -> BlockGraph:
    part = copy_graph(graph)
    wanted = [find_node(part, cut) for cut in cuts] + [results_of(part)[index] for index in results]
    output_of(part).args = (tuple(wanted),)
    Pipeline((DeadCode(),)).run(part)
    return BlockGraph(key, fx.GraphModule(torch.nn.Module(), part), (), (), graph_flops(part))


def _rest_part(
    block: BlockGraph, graph: fx.Graph, cuts: tuple[str, ...], results: tuple[int, ...], key: str
) -> BlockGraph:
    part = copy_graph(graph)
    output_of(part).args = (tuple(node for index, node in enumerate(results_of(part)) if index not in results),)
    last = part.find_nodes(op="placeholder")[-1]
    for cut in cuts:
        node = find_node(part, cut)
        with part.inserting_after(last):
            last = part.placeholder(f"{cut}_ahead")
        last.meta = {"val": node.meta["val"]}
        node.replace_all_uses_with(last)
    Pipeline((DeadCode(),)).run(part)
    module = fx.GraphModule(torch.nn.Module(), part)
    return dataclasses.replace(block, key=key, module=module, flops=graph_flops(part))


def _reuses_conditioning(splits: Mapping[tuple[str, tuple[Source, ...]], _Split | None]) -> bool:
    """Whether a region lost its cut: then the sample itself was taken for conditioning."""
    for split in splits.values():
        names = {node.name for node in split.rest.module.graph.nodes} if split else set()
        if split and any(cut.node not in names for region in split.rest.regions for cut in region.cuts):
            return True
    return False
