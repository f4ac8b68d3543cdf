"""How kept values are stored that are rounded to fewer bits than they are computed in."""

from dataclasses import dataclass

import torch

from soda_compile.ir.structure import Cut, Region
from soda_compile.plans.plan_file import SlotDtype
from soda_compile.torch_internals.size_expressions import size_hint


@dataclass(frozen=True)
class SlotFormat:
    """How a kept value is stored.

    Attributes:
        name: In a plan.
        dtype: Its elements.
        largest: What the largest element of a row is stored as, where rows have scales; None where none have.
    """

    name: SlotDtype
    dtype: torch.dtype
    largest: float | None = None


FORMATS: dict[SlotDtype, SlotFormat] = {
    "bfloat16": SlotFormat("bfloat16", torch.bfloat16),
    "int8": SlotFormat("int8", torch.int8, 127.0),
    "float8": SlotFormat("float8", torch.float8_e4m3fn, 448.0),
}


def stored_bytes(region: Region, kept: SlotFormat) -> int:
    """Return the size of one stored copy of a region's cuts, their scales included."""
    return sum(_cut_bytes(cut, kept) for cut in region.cuts)


def _cut_bytes(cut: Cut, kept: SlotFormat) -> int:
    if not narrows(kept, cut.dtype):
        return cut.memory_bytes
    elements = cut.memory_bytes // cut.dtype.itemsize
    rows = elements // size_hint(cut.shape[-1]) if kept.largest is not None else 0
    return cut.in_dtype(kept.dtype).memory_bytes + rows * torch.float32.itemsize


def narrows(kept: SlotFormat, dtype: torch.dtype) -> bool:
    """Return whether values of a dtype are stored in fewer bytes than they have."""
    return dtype.is_floating_point and dtype.itemsize > kept.dtype.itemsize
