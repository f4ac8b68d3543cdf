"""Separation of a denoiser in two: what depends on some of its inputs alone, and the rest, which takes its values."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from soda_compile.compiler.dependence import Dependence, name_dtypes, node_levels
from soda_compile.ir.aten_operators import graph_flops, holds_tensor, is_heavy
from soda_compile.ir.graphs import copy_graph, find_node, output_of, results_of
from soda_compile.ir.structure import BlockCall, BlockGraph, Structure
from soda_compile.passes.dead_code import DeadCode
from soda_compile.passes.manager import Pipeline

LABELS = {Dependence.CONSTANT: "constant", Dependence.TIMESTEP: "conditioning"}
"""What the separated part of each block is called."""


@dataclass(frozen=True, eq=False)
class _Split:
    """A block graph in two.

    Attributes:
        part: Gives the values that the block is cut at, and those of its results that belong to the part.
        remainder: The block, with the former as inputs after its own.
        cuts: Names of the nodes cut at.
        results: Indices of the block's outputs that the first part gives.
    """

    part: BlockGraph
    remainder: BlockGraph
    cuts: tuple[str, ...]
    results: tuple[int, ...]


def separate(
    structure: Structure, level: Dependence, level_of: Callable[[str, Any], Dependence]
) -> tuple[Structure, Structure] | None:
    """Split a denoiser into what depends on a level at most, and the remainder, which takes its values as inputs.

    Each block graph is cut behind the last products of the part; cheaper operators after them (chunks, the 1 of
    ``1 + scale``) stay in the block, where they cost nothing.

    Args:
        structure: The denoiser.
        level: The level of the part.
        level_of: Tells the level of an input that is no weight, by its name and example value.

    Returns:
        The part, with its values as outputs, and the remainder, which takes them after the other inputs; None if
        there is no matrix product among the part.
    """
    levels = dict.fromkeys(structure.constants, Dependence.WEIGHTS)
    for name, weight in zip(structure.inputs, structure.parameters, strict=True):
        levels[name] = Dependence.WEIGHTS if weight else level_of(name, structure.read_values.get(name))
    splits: dict[tuple[str, tuple[Dependence, ...]], _Split | None] = {}
    part: list[BlockCall] = []
    remainder: list[BlockCall] = []
    for call in structure.calls:
        key = (call.block.key, tuple(levels[name] for name in call.inputs))
        if key not in splits:
            splits[key] = _split(call.block, key[1], level)
        split = splits[key]
        levels |= dict.fromkeys(call.outputs, Dependence.SAMPLE)
        if split is None:
            remainder.append(call)
            continue
        results = [call.outputs[index] for index in split.results]
        levels |= dict.fromkeys(results, level)
        cuts = [f"{call.name}/{cut}" for cut in split.cuts]
        part.append(_call(f"{call.name} ({LABELS[level]})", split.part, call, (), (*cuts, *results)))
        others = [name for name in call.outputs if name not in results]
        remainder.append(_call(call.name, split.remainder, call, cuts, others))
    if not any(call.block.flops for call in part):
        return None
    read = {name for call in remainder for name in call.inputs}.union(structure.outputs)
    values = tuple(name for call in part for name in call.outputs if name in read)
    return (
        dataclasses.replace(structure, calls=tuple(part), outputs=values),
        dataclasses.replace(
            structure,
            calls=tuple(remainder),
            inputs=(*structure.inputs, *values),
            paths=(*structure.paths, *values),
            parameters=(*structure.parameters, *(False for _ in values)),
        ),
    )


def loses_cut(block: BlockGraph) -> bool:
    """Return whether a region lost its cut to the part, so that nothing is left of it to plan."""
    names = {node.name for node in block.module.graph.nodes}
    return any(cut.node not in names for region in block.regions for cut in region.cuts)


def _call(name: str, block: BlockGraph, whole: BlockCall, cuts: Iterable[str], outputs: Iterable[str]) -> BlockCall:
    """Return a call of a part of a block: inputs of the block that the part still has, then the cuts."""
    inputs = dict(zip(_names(whole.block.module.graph), whole.inputs, strict=True))
    kept = [inputs[name] for name in _names(block.module.graph) if name in inputs]
    return BlockCall(name, block, (*kept, *cuts), tuple(outputs))


def _names(graph: fx.Graph) -> list[str]:
    return [node.name for node in graph.find_nodes(op="placeholder")]


def _split(block: BlockGraph, inputs: tuple[Dependence, ...], level: Dependence) -> _Split | None:
    """Cut a block graph in two; return None where the part does not pass through it."""
    graph = copy_graph(block.module.graph)
    name_dtypes(graph)
    levels = node_levels(graph, inputs, level)
    results = tuple(index for index, node in enumerate(results_of(graph)) if levels[node] is level)
    cuts = _cuts(graph, levels, level)
    if not cuts and not results:
        return None
    digest = hashlib.sha256(f"{block.key} {inputs}".encode()).hexdigest()[:16]
    letter = LABELS[level][:4]
    remainder = _remainder(block, graph, cuts, results, f"{digest}{letter}r")
    if level is Dependence.CONSTANT and loses_cut(remainder):
        return None  # such as a refiner of the text, whose regions the plan speaks of
    return _Split(_part(graph, cuts, results, f"{digest}{letter}"), remainder, cuts, results)


def _cuts(graph: fx.Graph, levels: Mapping[fx.Node, Dependence], level: Dependence) -> tuple[str, ...]:
    """Return the products of the part that the remainder reads through cheaper operators at most."""
    exposed: set[fx.Node] = set()
    cuts = []
    for node in reversed(graph.nodes):
        if levels.get(node) is not level:
            continue
        readers = [user for user in node.users if user.op != "output"]
        if any(levels[user] is not level or user in exposed for user in readers):
            if node.op == "call_function" and is_heavy(node) and holds_tensor(node):
                cuts.append(node.name)
            else:
                exposed.add(node)
    return tuple(reversed(cuts))


def _part(graph: fx.Graph, cuts: tuple[str, ...], results: tuple[int, ...], key: str) -> BlockGraph:
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
