"""Which axis of a value counts the samples of a batch: rarely the first where a model keeps tokens first.

The first axis of the inputs counts them; from there they are followed through the graph.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from soda_compile.analysis.sample_rules import LostSamples, SampleAxis, Samples, samples_after
from soda_compile.ir.graphs import results_of
from soda_compile.ir.structure import BlockGraph, Structure


@dataclass(frozen=True)
class RegionSamples:
    """Where the samples lie in the values of one region.

    Attributes:
        samples: How many samples its values are measured by.
        cuts: For each cut, its axis of samples; None where all values count as one sample.
        carries: The same for each operand of its residual adds.
        reason: Why all values count as one sample though the batch has more; empty where they do not.
    """

    samples: int
    cuts: tuple[SampleAxis | None, ...]
    carries: tuple[SampleAxis | None, ...]
    reason: str = ""

    @property
    def fault(self) -> str:
        """Return why the first axis does not count samples, alone or times frames; empty where nothing says so."""
        folded = [axis for axis in (*self.cuts, *self.carries) if axis is not None and not axis.leads]
        return f"its samples are on {folded[0]}, not on axis 0" if folded else ""


def batch_size(structure: Structure) -> int:
    """Return the samples in a batch: the first axis of most inputs, the sample's, the timestep's, the text's.

    Of sizes that come up equally often, it is that of an earlier input with further axes; tables of positions have
    first axes of their own.
    """
    names = zip(structure.inputs, structure.parameters, strict=True)
    read = [structure.read_values.get(name) for name, parameter in names if not parameter]
    values = [value for value in read if isinstance(value, torch.Tensor) and value.ndim > 0]
    values.sort(key=lambda value: value.ndim == 1)
    ((size, _),) = Counter(int(value.shape[0]) for value in values).most_common(1) or [(1, 0)]
    return size if any(value.ndim > 1 for value in values) else 1


def region_samples(structure: Structure) -> tuple[RegionSamples, ...]:
    """Return for each region where the samples of a batch lie in its values."""
    samples = batch_size(structure)
    found = _sample_axes(structure, samples) if samples > 1 else {}

    def of_region(block: BlockGraph, index: int) -> RegionSamples:
        region = block.regions[index]
        names = (*(cut.node for cut in region.cuts), *region.carries)
        axes = [found[block.key][name] for name in names] if found else [None] * len(names)
        known = tuple(axis if isinstance(axis, SampleAxis) else None for axis in axes)
        reason = "" if samples == 1 else _reason(names, axes)
        if reason:
            known = (None,) * len(known)
        count = 1 if reason else samples
        return RegionSamples(count, known[: len(region.cuts)], known[len(region.cuts) :], reason)

    return structure.for_each_region(of_region)


def _reason(names: Sequence[str], axes: Sequence[Samples]) -> str:
    """Return why some of the values have no axis of samples."""
    for name, axis in zip(names, axes, strict=True):
        if isinstance(axis, LostSamples):
            return f"samples cannot be told apart after {axis.at}"
        if axis is None:
            return f"{name} is the same for all samples"
    return ""


def _sample_axes(structure: Structure, samples: int) -> dict[str, dict[str, Samples]]:
    """Return the samples in each node of each block graph; where calls of one graph differ, they are lost."""
    values: dict[str, Samples] = dict.fromkeys(structure.constants)
    for name, parameter in zip(structure.inputs, structure.parameters, strict=True):
        value = structure.read_values.get(name)
        batched = isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == samples
        values[name] = SampleAxis(0, 1, samples, 1) if batched and not parameter else None
    followed: dict[tuple[str, tuple[Samples, ...]], dict[str, Samples]] = {}
    found: dict[str, dict[str, Samples]] = {}
    for call in structure.calls:
        key = (call.block.key, tuple(values[name] for name in call.inputs))
        graph = call.block.module.graph
        if key not in followed:
            followed[key] = _follow(graph, key[1])
        mine = followed[key]
        values |= zip(call.outputs, (mine[node.name] for node in results_of(graph)), strict=True)
        found[call.block.key] = _common(found.get(call.block.key, mine), mine)
    return found


def _follow(graph: fx.Graph, inputs: Sequence[Samples]) -> dict[str, Samples]:
    samples: dict[fx.Node, Samples | tuple[Samples, ...]] = dict(
        zip(graph.find_nodes(op="placeholder"), inputs, strict=True)
    )
    for node in graph.nodes:
        if node.op not in ("placeholder", "output"):
            samples[node] = samples_after(node, samples)
    return {node.name: axis for node, axis in samples.items() if not isinstance(axis, tuple)}


def _common(first: Mapping[str, Samples], second: Mapping[str, Samples]) -> dict[str, Samples]:
    if first is second:
        return dict(first)
    return {name: axis if second[name] == axis else LostSamples(name) for name, axis in first.items()}
