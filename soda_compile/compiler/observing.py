"""The original denoiser, which hands the values that sensitivity is measured on to an observer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from soda_compile.analysis.cut_to_branch import CutToBranch, cut_to_branch
from soda_compile.analysis.outline import canonical_key
from soda_compile.analysis.sample_axes import region_samples
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.variants import Subgraph
from soda_compile.ir.graphs import copy_graph
from soda_compile.ir.structure import BlockGraph, Structure
from soda_compile.passes.manager import Pipeline
from soda_compile.passes.observe import Observe
from soda_compile.torch_internals.inductor_patches import Compiled


@runtime_checkable
class Observer(Protocol):
    """Receiver of the values of an observed denoiser."""

    @property
    def wants_carries(self) -> bool:
        """Return whether the values of carries are to be handed over as well, where regions can be pruned."""

    def start(self, structure: Structure) -> None:
        """Take the structure of the calls that follow; each shape that the model is called with has one of its own.

        Raises:
            Miss: Such calls are not to be seen; they run as they are.
        """

    def begin_call(self, inputs: Mapping[str, Any]) -> None:
        """Take the caller's inputs by name, parameters left out, before each denoiser call."""

    def record(self, region: int, values: Mapping[str, torch.Tensor]) -> None:
        """Take the values of one region in a call, by the names that ``Observe`` gives them."""


@dataclass(frozen=True, eq=False)
class ObservedBlock:
    """A block graph compiled to give its observations as well."""

    function: Compiled
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ObservedDenoiser:
    """The original denoiser, called by Dynamo with the graph's inputs in order; it tells the observer what it sees."""

    structure: Structure
    blocks: Mapping[str, ObservedBlock]
    observer: Observer

    def __call__(self, *inputs: Any) -> list[Any]:
        """Run the denoiser once; inputs and outputs are those of the captured graph."""
        structure = self.structure
        self.observer.start(structure)
        self.observer.begin_call(
            {
                path: value
                for path, value, parameter in zip(structure.paths, inputs, structure.parameters, strict=True)
                if not parameter
            }
        )
        values: dict[str, Any] = dict(zip(structure.inputs, inputs, strict=True)) | structure.constants
        number = 0
        for call in structure.calls:
            block = self.blocks[call.block.key]
            results = block.function(*[values[name] for name in call.inputs])
            values |= zip(call.outputs, results, strict=False)
            seen = dict(zip(block.names, results[len(call.outputs) :], strict=True))
            for _ in call.block.regions:
                self.observer.record(number, seen)
                number += 1
        return [values[name] if name else None for name in structure.outputs]


def build_observed(structure: Structure, observer: Observer, lowering: Lowering) -> ObservedDenoiser:
    """Compile every distinct block graph with its observations as outputs."""
    subgraphs: dict[str, tuple[Subgraph, tuple[str, ...]]] = {}
    axes = _carry_axes(structure)
    for call in structure.calls:
        key = call.block.key
        if key not in subgraphs:
            subgraphs[key] = _observed_subgraph(call.name, call.block, observer.wants_carries, axes[key])
    lowering.compile(subgraph for subgraph, _ in subgraphs.values())
    blocks = {
        key: ObservedBlock(lowering.compiled[subgraph.key], names) for key, (subgraph, names) in subgraphs.items()
    }
    observer.start(structure)
    return ObservedDenoiser(structure, blocks, observer)


def _carry_axes(structure: Structure) -> dict[str, dict[str, int]]:
    """Return for each block the axis that counts samples in each carry; left out where there is none."""
    axes: dict[str, dict[str, int]] = {call.block.key: {} for call in structure.calls}
    layouts = iter(region_samples(structure))
    for call in structure.calls:
        for region, layout in zip(call.block.regions, layouts, strict=False):
            named = zip(region.carries, layout.carries, strict=True)
            axes[call.block.key] |= {name: axis.axis for name, axis in named if axis is not None}
    return axes


def _observed_subgraph(
    name: str, block: BlockGraph, carries: bool, axes: Mapping[str, int]
) -> tuple[Subgraph, tuple[str, ...]]:
    graph = copy_graph(block.module.graph)
    names = Pipeline((Observe(block.regions, carries, axes),)).run(graph).changed
    return Subgraph(canonical_key(graph), name, graph, (), ()), names


def cut_to_branch_graphs(structure: Structure) -> tuple[CutToBranch, ...]:
    """Return for each region the graph from its cuts to its branches; regions of equal blocks share it."""
    return structure.for_each_region(lambda block, index: cut_to_branch(block.module.graph, block.regions[index]))
