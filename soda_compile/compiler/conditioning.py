"""Separation of conditioning: what depends on the timestep and pooled inputs alone is cut off the blocks.

Modulations (adaLN) are products of one row per sample with large weights, so their time goes to reading weights and
launching kernels. In a stage of their own they can be computed for all steps of a trajectory at once.
"""

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


class Dependence(enum.IntEnum):
    """Kind of input that a value depends on, as the highest level among its operands."""

    WEIGHTS = 0  # weights and constants
    POOLED = 1  # inputs of two axes too, [batch, features], such as pooled texts
    TIMESTEP = 2  # inputs of at most one axis too, a number for each sample: the timestep, labels, guidance
    SAMPLE = 3  # the latents, the text


@dataclass(frozen=True, eq=False)
class _Split:
    """A block graph in two.

    Attributes:
        conditioning: Gives the values that the block is cut at, and those of its results that are conditioning.
        remainder: The block, with the former as inputs after its own.
        cuts: Names of the nodes cut at.
        results: Indices of the block's outputs that the first part gives.
    """

    conditioning: BlockGraph
    remainder: BlockGraph
    cuts: tuple[str, ...]
    results: tuple[int, ...]


def separate_conditioning(structure: Structure) -> tuple[Structure, Structure] | None:
    """Split a denoiser into the conditioning and the remainder, which takes its values after the other inputs.

    Each block graph is cut behind the last products of its conditioning; cheaper operators after them (chunks, the 1
    of ``1 + scale``) stay in the block, where they cost nothing.

    Returns:
        The conditioning, with its values as outputs, and the remainder; None if there is no matrix product among the
        conditioning, or what can be reused is itself conditioning.
    """
    levels = _input_levels(structure)
    splits: dict[tuple[str, tuple[Dependence, ...]], _Split | None] = {}
    conditioning: list[BlockCall] = []
    remainder: list[BlockCall] = []
    for call in structure.calls:
        key = (call.block.key, tuple(levels[name] for name in call.inputs))
        if key not in splits:
            splits[key] = _split(call.block, key[1])
        split = splits[key]
        levels |= dict.fromkeys(call.outputs, Dependence.SAMPLE)
        if split is None:
            remainder.append(call)
            continue
        results = [call.outputs[index] for index in split.results]
        levels |= dict.fromkeys(results, Dependence.TIMESTEP)
        cuts = [f"{call.name}/{cut}" for cut in split.cuts]
        conditioning.append(_call(f"{call.name} (conditioning)", split.conditioning, call, (), (*cuts, *results)))
        others = [name for name in call.outputs if name not in results]
        remainder.append(_call(call.name, split.remainder, call, cuts, others))
    if not any(call.block.flops for call in conditioning) or _reuses_conditioning(splits.values()):
        return None
    read = {name for call in remainder for name in call.inputs}.union(structure.outputs)
    values = tuple(name for call in conditioning for name in call.outputs if name in read)
    return (
        dataclasses.replace(structure, calls=tuple(conditioning), outputs=values),
        dataclasses.replace(
            structure,
            calls=tuple(remainder),
            inputs=(*structure.inputs, *values),
            paths=(*structure.paths, *values),
            parameters=(*structure.parameters, *(False for _ in values)),
        ),
    )


def _call(name: str, block: BlockGraph, whole: BlockCall, cuts: Iterable[str], outputs: Iterable[str]) -> BlockCall:
    """Return a call of a part of a block: inputs of the block that the part still has, then the cuts."""
    inputs = dict(zip(_names(whole.block.module.graph), whole.inputs, strict=True))
    kept = [inputs[name] for name in _names(block.module.graph) if name in inputs]
    return BlockCall(name, block, (*kept, *cuts), tuple(outputs))


def _names(graph: fx.Graph) -> list[str]:
    return [node.name for node in graph.find_nodes(op="placeholder")]


def _input_levels(structure: Structure) -> dict[str, Dependence]:
    """Return the levels of the constants and of the caller's inputs, whose axes tell samples from pooled values."""
    levels = dict.fromkeys(structure.constants, Dependence.WEIGHTS)
    by_axes = (Dependence.TIMESTEP, Dependence.TIMESTEP, Dependence.POOLED)
    for name, parameter in zip(structure.inputs, structure.parameters, strict=True):
        value = structure.read_values.get(name)
        if parameter:
            levels[name] = Dependence.WEIGHTS
        elif isinstance(value, torch.Tensor) and value.ndim < len(by_axes):
            levels[name] = by_axes[value.ndim]
        else:
            levels[name] = Dependence.SAMPLE
    return levels


def _split(block: BlockGraph, inputs: tuple[Dependence, ...]) -> _Split | None:
    """Cut a block graph in two; return None where no conditioning passes through it."""
    graph = copy_graph(block.module.graph)
    _name_dtypes(graph)
    levels = _node_levels(graph, inputs)
    results = tuple(index for index, node in enumerate(results_of(graph)) if levels[node] is Dependence.TIMESTEP)
    cuts = _cuts(graph, levels)
    if not cuts and not results:
        return None
    digest = hashlib.sha256(f"{block.key} {inputs}".encode()).hexdigest()[:16]
    return _Split(
        conditioning=_conditioning_part(graph, cuts, results, f"{digest}c"),
        remainder=_remainder(block, graph, cuts, results, f"{digest}r"),
        cuts=cuts,
        results=results,
    )


def _name_dtypes(graph: fx.Graph) -> None:
    """Name the dtype where an operator takes it from a tensor: a cast to the text's dtype needs no text."""
    for node in graph.find_nodes(op="call_function", target=aten.type_as.default):
        with graph.inserting_before(node):
            cast = add_call(graph, aten._to_copy.default, node.args[0], dtype=node.meta["val"].dtype)
        node.replace_all_uses_with(cast)
        graph.erase_node(node)


def _node_levels(graph: fx.Graph, inputs: tuple[Dependence, ...]) -> dict[fx.Node, Dependence]:
    levels = dict(zip(graph.find_nodes(op="placeholder"), inputs, strict=True))
    for node in graph.nodes:
        if node.op == "call_function":
            highest = max((levels[source] for source in node.all_input_nodes), default=Dependence.WEIGHTS)
            levels[node] = highest if _is_plain(node) else Dependence.SAMPLE
    return levels


def _is_plain(node: fx.Node) -> bool:
    """Return whether the node gives the same for the same inputs, static shapes, and treats all steps alike."""
    if isinstance(node.target, torch._ops.HigherOrderOperator) or packet(node) in QUANTISED:
        return False
    tags = getattr(node.target, "tags", ())
    unruly = (torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    return not any(tag in tags for tag in unruly)


def _cuts(graph: fx.Graph, levels: Mapping[fx.Node, Dependence]) -> tuple[str, ...]:
    """Return the products of the conditioning that the remainder reads through cheaper operators at most."""
    exposed: set[fx.Node] = set()
    cuts = []
    for node in reversed(graph.nodes):
        if levels.get(node) is not Dependence.TIMESTEP:
            continue
        readers = [user for user in node.users if user.op != "output"]
        if any(levels[user] is not Dependence.TIMESTEP or user in exposed for user in readers):
            if node.op == "call_function" and is_heavy(node) and holds_tensor(node):
                cuts.append(node.name)
            else:
                exposed.add(node)
    return tuple(reversed(cuts))


def _conditioning_part(graph: fx.Graph, cuts: tuple[str, ...], results: tuple[int, ...], key: str) -> BlockGraph:
    part = copy_graph(graph)
    values = [find_node(part, cut) for cut in cuts] + [results_of(part)[index] for index in results]
    output_of(part).args = (tuple(values),)
    Pipeline((DeadCode(),)).run(part)
    return BlockGraph(key, fx.GraphModule(torch.nn.Module(), part), (), (), graph_flops(part))


def _remainder(
    block: BlockGraph, graph: fx.Graph, cuts: tuple[str, ...], results: tuple[int, ...], key: str
) -> BlockGraph:
    part = copy_graph(graph)
    output_of(part).args = (tuple(node for index, node in enumerate(results_of(part)) if index not in results),)
    last = part.find_nodes(op="placeholder")[-1]
    for cut in cuts:
        node = find_node(part, cut)
        with part.inserting_after(last):
            last = part.placeholder(f"{cut}_value")
        last.meta = {"val": node.meta["val"]}
        node.replace_all_uses_with(last)
    Pipeline((DeadCode(),)).run(part)
    module = fx.GraphModule(torch.nn.Module(), part)
    return dataclasses.replace(block, key=key, module=module, flops=graph_flops(part))


def _reuses_conditioning(splits: Iterable[_Split | None]) -> bool:
    """Return whether a region lost its cut: then the sample itself was taken for conditioning."""
    return any(
        cut.node not in {node.name for node in split.remainder.module.graph.nodes}
        for split in splits
        if split is not None
        for region in split.remainder.regions
        for cut in region.cuts
    )
