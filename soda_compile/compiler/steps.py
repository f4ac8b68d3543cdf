"""The subgraphs of one step: variants of blocks, as far as they are needed, in groups."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from soda_compile.compiler.schedule import Access, RegionMode
from soda_compile.compiler.variants import Subgraph, Variant, join, make_variant
from soda_compile.ir.structure import OUTPUT_KIND, BlockCall, Note, Structure

Granularity = Literal["block", "step"]

# Joining more blocks than this fuses hardly more, and makes code that only this one run can use.
LONGEST_JOIN = 8


@dataclass(frozen=True, eq=False)
class StepSubgraphs:
    """The subgraphs of one step, and the slot traffic of each region."""

    subgraphs: tuple[Subgraph, ...]
    accesses: tuple[tuple[Access, ...], ...]  # [call][region]


class StepBuilder:
    """Builds the subgraphs of steps; equal steps share them.

    Attributes:
        structure: The analysed denoiser.
        granularity: ``block`` compiles each block that computes on its own, so that equal ones share code; ``step``
            makes one graph of each step.
    """

    def __init__(self, structure: Structure, granularity: Granularity = "block") -> None:
        self.structure = structure
        self.granularity = granularity
        self._variants: dict[tuple[str, tuple[RegionMode, ...], tuple[bool, ...]], Variant] = {}
        self._steps: dict[tuple[tuple[RegionMode, ...], ...], tuple[Subgraph, ...]] = {}

    def subgraphs(self, modes: tuple[tuple[RegionMode, ...], ...]) -> tuple[Subgraph, ...]:
        """Return the subgraphs for one tuple of modes for each call."""
        if modes not in self._steps:
            self._steps[modes] = self._build(modes)
        return self._steps[modes]

    @property
    def notes(self) -> tuple[Note, ...]:
        """Return what the passes left alone in the variants made so far, named by the first of equal blocks."""
        names: dict[str, str] = {}
        for call in self.structure.calls:
            names.setdefault(call.block.key, call.name)
        found = ((names[key], note) for (key, *_), variant in self._variants.items() for note in variant.skipped)
        return tuple(dict.fromkeys(Note(f"{name}.{note.subject}", note.reason) for name, note in found))

    def _build(self, modes: tuple[tuple[RegionMode, ...], ...]) -> tuple[Subgraph, ...]:
        calls = self.structure.calls
        live: dict[int, Variant] = {}
        needed = set(filter(None, self.structure.outputs))
        reads: list[set[str]] = [set()] * len(modes)
        for index in reversed(range(len(modes))):
            reads[index] = set(needed)
            variant = self._variant(index, modes[index], tuple(name in needed for name in calls[index].outputs))
            if variant is not None:
                live[index] = variant
                needed |= {calls[index].inputs[source] for source in variant.inputs if isinstance(source, int)}
        light = [_is_light(call, mode) for call, mode in zip(calls, modes, strict=True)]
        runs = _runs(sorted(live), light) if self.granularity == "block" else filter(None, [sorted(live)])
        return tuple(join([(index, calls[index], live[index]) for index in run], reads[run[-1]]) for run in runs)

    def _variant(self, index: int, modes: tuple[RegionMode, ...], needed: tuple[bool, ...]) -> Variant | None:
        """Return the variant, or None where nothing of the call is read and nothing stored."""
        if not any(needed) and not any(mode.writes for mode in modes):
            return None
        block = self.structure.calls[index].block
        key = (block.key, modes, needed)
        if key not in self._variants:
            self._variants[key] = make_variant(block, modes, needed)
        return self._variants[key]


def _is_light(call: BlockCall, modes: Sequence[RegionMode]) -> bool:
    regions = zip(call.block.regions, modes, strict=True)
    return not any(mode.works and region.kind != OUTPUT_KIND for region, mode in regions)


def _runs(calls: Sequence[int], light: Sequence[bool]) -> list[list[int]]:
    """Group calls: blocks that compute stay alone, so that equal ones share code; runs of others become one graph.

    A graph of reuses is cheap to compile, and Inductor fuses its residual adds across blocks.
    """
    runs: list[list[int]] = []
    for is_light, group in itertools.groupby(calls, key=lambda index: light[index]):
        members = list(group)
        runs.extend(_chunks(members) if is_light else [[index] for index in members])
    return runs


def _chunks(run: Sequence[int]) -> list[list[int]]:
    """Return a long run in even parts, which equal blocks can share; its ends, prologue and epilogue, alone."""
    if len(run) <= LONGEST_JOIN + 2:
        return [list(run)]
    inner = list(run[1:-1])
    count = math.ceil(len(inner) / LONGEST_JOIN)
    bounds = [len(inner) * part // count for part in range(count + 1)]
    return [[run[0]], *(inner[start:stop] for start, stop in itertools.pairwise(bounds)), [run[-1]]]
