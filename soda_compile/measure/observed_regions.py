"""What calibration knows of the regions of one structure: how to read the values that it sees of them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import fx

from soda_compile.analysis.cut_to_branch import CutToBranch
from soda_compile.analysis.sample_axes import RegionSamples, batch_size, region_samples
from soda_compile.analysis.token_axes import region_carries
from soda_compile.compiler.observing import cut_to_branch_graphs
from soda_compile.ir.aten_operators import tensor_of
from soda_compile.ir.structure import Region, Structure
from soda_compile.measure.gram import Floats

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ObservedRegion:
    """One region and the layout of its values.

    Attributes:
        region: The region.
        head: What lies between its cuts and the residual stream.
        carries: The carry of each cut; empty where tokens are not ranked.
        layout: Where the samples of a batch lie.
    """

    region: Region
    head: CutToBranch
    carries: tuple[fx.Node, ...]
    layout: RegionSamples

    @property
    def samples(self) -> int:
        """Return how many samples its values are measured by."""
        return self.layout.samples

    def samples_first(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return values in the shapes of the cuts as [samples, ...] or [samples * frames, tokens, features]."""
        axes = zip(values, self.layout.cuts, strict=True)
        return [value if axis is None else axis.bring_first(value) for value, axis in axes]

    @cached_property
    def shapes(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return tensors without memory, in the shapes and dtypes of ``samples_first``: of the cuts, of the carries."""
        cuts = [torch.empty(cut.shape, dtype=cut.dtype, device="meta") for cut in self.region.cuts]
        carries = [torch.empty_like(tensor_of(carry), device="meta") for carry in self.carries]
        return self.samples_first(cuts), carries

    def residual_square(self, values: Mapping[str, torch.Tensor]) -> Floats:
        """Return the squared norm of the residual stream, float64 [samples]."""
        total = np.zeros(self.samples)
        for name, axis in zip(self.region.carries, self.layout.carries, strict=True):
            rows = values[f"|{name}|"].double()
            rows = rows.sum(0, keepdim=True) if axis is None else replace(axis, axis=0).bring_first(rows)
            total += rows.reshape(self.samples, -1).sum(1).cpu().numpy()
        return total


@dataclass(frozen=True, eq=False)
class ObservedRegions:
    """All regions of a structure.

    Attributes:
        regions: In the order of the structure's.
        batch: Samples in a batch.
    """

    regions: tuple[ObservedRegion, ...]
    batch: int

    @classmethod
    def of(cls, structure: Structure, carries: bool) -> "ObservedRegions":
        """Analyse a structure; ``carries`` tells whether tokens are ranked."""
        ranked = region_carries(structure) if carries else (None,) * len(structure.regions)
        layouts = region_samples(structure)
        _report(structure, layouts)
        parts = zip(structure.regions, cut_to_branch_graphs(structure), ranked, layouts, strict=True)
        return cls(
            tuple(ObservedRegion(region, head, own or (), layout) for region, head, own, layout in parts),
            batch_size(structure),
        )


def _report(structure: Structure, layouts: Sequence[RegionSamples]) -> None:
    """Say which regions count all values as one sample, a line for each reason."""
    names: dict[str, list[str]] = {}
    for name, layout in zip(structure.region_names, layouts, strict=True):
        if layout.reason:
            names.setdefault(layout.reason, []).append(name)
    for reason, regions in names.items():
        rest = f" and {len(regions) - 1} more" if len(regions) > 1 else ""
        log.warning("errors of %s%s are those of the whole batch as one sample: %s", regions[0], rest, reason)
