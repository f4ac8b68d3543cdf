"""The contents of a package, as text."""

import json
import math
from collections.abc import Iterator

from soda_compile.ir.tree import amount
from soda_compile.packages.loading import Package
from soda_compile.packages.manifest import CODE, REGIONS, ProgramEntry, TensorEntry
from soda_compile.packages.sizes import Point
from soda_compile.packages.tensors import named_dtype


def describe(package: Package, width: int | None = None) -> str:
    """Return origin, sizes, shapes, and the plan as a grid.

    Args:
        package: A verified package.
        width: Columns of the grid, the terminal's by default.
    """
    return "\n".join([*_facts(package), "", package.plan.grid(width)])


def _facts(package: Package) -> Iterator[str]:
    manifest, made = package.manifest, package.manifest.environment
    regions = json.loads(bytes(package.members[REGIONS]))
    device = (
        f"{made.device} {made.device_name} (compute capability {made.capability})" if made.capability else made.device
    )
    yield f"{manifest.model}: {len(regions)} blocks, {sum(len(block['regions']) for block in regions)} regions"
    yield f"made by      soda_compile {made.soda}, torch {made.torch}, on {made.system} for {device}"
    yield f"plan         {package.plan.digest}, {manifest.steps} steps" + (
        f" of {manifest.scheduler}" if manifest.scheduler else ""
    )
    for program in package.programs:
        arguments = (f"{name} {entry}" for name, entry in program.call.arguments.items())
        yield f"inputs       {', '.join(arguments)}"
        if program.dims:
            ranges = (f"{name} {dim}" for name, dim in program.dims.items())
            yield f"for any      {', '.join(ranges)}"
        fixed = ", ".join(f"{name}={value!r}" for name, value in program.call.constants.items() if value is not None)
        if fixed:
            yield f"fixed        {fixed}"
        yield f"slots        {_slots(program)} for each branch of guidance"
    code = sum(len(data) for name, data in package.members.items() if name.startswith(CODE))
    stored = sum(_memory_bytes(entry, {}) for entry in manifest.weights.values())
    where = "inside, once" if manifest.weights_inside else "external; load needs the checkpoint"
    yield f"weights      {len(manifest.weights)} tensors, {amount(stored, 'B')}, {where}"
    yield f"code         {len(package.subgraphs)} subgraphs, {amount(code, 'B')}"
    yield f"file         {amount(package.path.stat().st_size, 'B')}, {len(package.members)} members, checksums verified"


def _memory_bytes(entry: TensorEntry, values: Point) -> int:
    """Return the size of a tensor where the dynamic dimensions have these values."""
    return named_dtype(entry.dtype).itemsize * math.prod(entry.shape_at(values))


def _slots(program: ProgramEntry) -> str:
    """Return the memory of all slots at the smallest and the largest sizes."""
    smallest = {name: dim.low for name, dim in program.dims.items()}
    ends = [smallest, {name: dim.high for name, dim in program.dims.items()}]
    sizes = [sum(_memory_bytes(slot, values) for slot in program.slots.values()) for values in ends]
    return " to ".join(dict.fromkeys(amount(size, "B") for size in sizes))
