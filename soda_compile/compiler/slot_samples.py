"""Where the samples of a batch lie in the slots of a program."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from soda_compile.analysis.sample_axes import batch_size, region_samples
from soda_compile.analysis.sample_rules import SampleAxis
from soda_compile.compiler.program import Program
from soda_compile.errors import CaptureError
from soda_compile.ir.structure import Structure


@dataclass(frozen=True)
class SampleSlot:
    """One slot of a program.

    Attributes:
        key: What it keeps; the same in programs of one plan for other batches.
        axis: Its axis of samples; None in a batch of one, where all of it belongs to the one sample.
    """

    key: Hashable
    axis: SampleAxis | None


def slot_samples(structure: Structure, program: Program) -> Mapping[int, SampleSlot]:
    """Return where the samples lie in each slot, by register.

    Raises:
        CaptureError: The values of a slot are the same for all samples, or mix them.
    """
    regions, samples = region_samples(structure), batch_size(structure)
    found = {}
    for register, cut in program.slots.items():
        key = program.slot_keys[register]
        assert isinstance(key, tuple)
        # All that is kept for pruning is by sample, times video frames, and token.
        axis: SampleAxis | None = SampleAxis(0, 1, samples, cut.shape[0] // samples)
        if key[0] == "index":
            kind, group, folded, *rest = key
            key = (kind, group, folded // samples, *rest)
        elif key[0] in ("cut", "scale"):
            axis = regions[key[1]].cuts[key[2]]
            if axis is None and samples > 1:
                raise CaptureError(
                    f"generations cannot share a batch, as what {structure.region_names[key[1]]} keeps cannot be "
                    f"divided: {regions[key[1]].reason}. Pass sizes=(1,) to run them one after the other"
                )
            if key[0] == "scale" and axis is not None and samples > 1 and axis.axis == len(cut.shape) - 1:
                raise CaptureError(
                    f"generations cannot share a batch, as what {structure.region_names[key[1]]} keeps is rounded "
                    "along the axis of the samples. Pass sizes=(1,), or a plan without slot_dtype"
                )
        found[register] = SampleSlot(key, axis if samples > 1 else None)
    return found
