"""FLOPs that pruning saves in each region, as the passes do it."""

import numpy as np
from numpy.typing import NDArray

from soda_compile.analysis.token_axes import carries_of, pruning_faults
from soda_compile.compiler.schedule import RegionMode
from soda_compile.compiler.variants import make_variant
from soda_compile.ir.aten_operators import graph_flops
from soda_compile.ir.graphs import results_of
from soda_compile.ir.structure import BlockGraph, Structure
from soda_compile.plans.actions import COMPUTE, PRUNE_RATES, prune
from soda_compile.plans.pruning import Pruning


def prune_flops(structure: Structure) -> NDArray[np.float64]:
    """Return the FLOPs that pruning removes from one call, [regions, len(PRUNE_RATES)]; 0 where it is impossible.

    The longest token group of a region is pruned; its other groups are computed whole, as ``prune(rate)`` does it.
    """
    found = zip(structure.for_each_region(_of_region), pruning_faults(structure), strict=True)
    rows = [np.zeros(len(PRUNE_RATES)) if fault else saved for saved, fault in found]
    return np.stack(rows) if rows else np.zeros((0, len(PRUNE_RATES)))


def _of_region(block: BlockGraph, index: int) -> NDArray[np.float64]:
    saved = np.zeros(len(PRUNE_RATES))
    if carries_of(block.module.graph, block.regions[index]) is None:
        return saved
    outputs = len(results_of(block.module.graph))
    for position, rate in enumerate(PRUNE_RATES):
        modes = [RegionMode(COMPUTE)] * len(block.regions)
        modes[index] = RegionMode(prune(rate), pruning=Pruning("feature_mean"))
        variant = make_variant(block, modes, [True] * outputs)
        saved[position] = max(0, block.flops - graph_flops(variant.graph))
    return saved
