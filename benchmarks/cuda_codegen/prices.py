"""What a step costs by counting: launches, arithmetic, bytes, registers, and the time that data sheets allow."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.cuda_codegen.arithmetic import Arithmetic
from benchmarks.cuda_codegen.boundaries import Kernel
from benchmarks.cuda_codegen.compiling import CompiledGraph
from benchmarks.cuda_codegen.datasheets import PRICED, Gpu


@dataclass(frozen=True)
class Price:
    """Of one step, or of what runs once in a generation.

    Attributes:
        generated: Launches of generated kernels.
        library: Launches of libraries; an operator of a library counts as one.
        work: Operations by unit.
        read_bytes: Into kernels.
        written_bytes: Out of kernels.
        slot_read_bytes: Part of what is read that comes from kept values.
        slot_bytes: Kept values that are read, each counted once.
        slot_written_bytes: Kept values that are written by a copy of their own.
        registers: Most registers of a thread in any generated kernel's leanest configuration; None where some graph
            was not compiled to cubins.
        spilling: Launches of generated kernels all of whose configurations spill; None likewise.
        roofline_us: By GPU, in microseconds: for each kernel the longest of its units.
    """

    generated: int
    library: int
    work: Arithmetic
    read_bytes: int
    written_bytes: int
    slot_read_bytes: int
    slot_bytes: int
    slot_written_bytes: int
    registers: int | None
    spilling: int | None
    roofline_us: dict[str, float]

    @property
    def launches(self) -> int:
        return self.generated + self.library

    @property
    def moved_bytes(self) -> int:
        return self.read_bytes + self.written_bytes


def price(calls: Counter[str], graphs: Mapping[str, CompiledGraph]) -> Price:
    """Add up the graphs that a step calls, each by how often it is called."""
    made = [(graphs[key], count) for key, count in calls.items()]
    assembled = all(graph.assembled for graph, _ in made)
    launched = [(kernel, count) for graph, count in made for kernel in graph.kernels]
    return Price(
        generated=sum(count for kernel, count in launched if not kernel.library),
        library=sum(count for kernel, count in launched if kernel.library),
        work=sum((_times(kernel.work, count) for kernel, count in launched), Arithmetic()),
        read_bytes=sum(kernel.read_bytes * count for kernel, count in launched),
        written_bytes=sum(kernel.written_bytes * count for kernel, count in launched),
        slot_read_bytes=sum(slot_reads(graph) * count for graph, count in made),
        slot_bytes=sum(sum(graph.slots[name] for name in slots_read(graph)) * count for graph, count in made),
        slot_written_bytes=sum(_slot_writes(graph) * count for graph, count in made),
        registers=_registers(made) if assembled else None,
        spilling=_spilling(made) if assembled else None,
        roofline_us={
            gpu.name: sum(roofline(kernel, gpu) * count for kernel, count in launched) * 1e6 for gpu in PRICED
        },
    )


def roofline(kernel: Kernel, gpu: Gpu) -> float:
    """Seconds that a kernel takes at least by the data sheet: arithmetic and memory overlap, kernels do not.

    A special function takes a sixteenth of the float32 rate of multiply-adds, which count as two.
    """
    floats, special = kernel.work.floats / (gpu.float_flops / 2), kernel.work.special / (gpu.float_flops / 16)
    moved = (kernel.read_bytes + kernel.written_bytes) / gpu.bandwidth
    return max(kernel.work.tensor / gpu.tensor_flops, floats, special, moved)


def slots_read(graph: CompiledGraph) -> set[str]:
    """Names of the slots that any kernel of the graph reads."""
    return {name for kernel in graph.kernels for name in kernel.reads if name in graph.slots}


def slot_reads(graph: CompiledGraph) -> int:
    """Bytes that kernels of the graph read from slots, as often as they do."""
    return sum(size for kernel in graph.kernels for name, size in kernel.reads.items() if name in graph.slots)


def _slot_writes(graph: CompiledGraph) -> int:
    return sum(size for kernel in graph.kernels for name, size in kernel.writes.items() if name in graph.slots)


def _registers(made: Iterable[tuple[CompiledGraph, int]]) -> int:
    return max((min(each) for graph, _ in made for each in _by_kernel(graph, "registers")), default=0)


def _spilling(made: Iterable[tuple[CompiledGraph, int]]) -> int:
    return sum(count * (min(each) > 0) for graph, count in made for each in _by_kernel(graph, "spill_bytes"))


def _by_kernel(graph: CompiledGraph, field: str) -> Iterable[list[int]]:
    found: dict[str, list[int]] = {}
    for cubin in graph.cubins:
        found.setdefault(cubin.kernel, []).append(getattr(cubin, field))
    return found.values()


def _times(work: Arithmetic, count: int) -> Arithmetic:
    return Arithmetic(work.tensor * count, work.floats * count, work.special * count)


@dataclass(frozen=True)
class Saving:
    """A step over the full one on one GPU.

    Attributes:
        time: Share of the full step's roofline time that it takes.
        bytes: Share of the bytes.
        flops: Share of the tensor cores' work.
        launches: Share of the launches.
    """

    time: float
    bytes: float
    flops: float
    launches: float

    @property
    def efficiency(self) -> float | None:
        """Share of the time saved over share of the FLOPs saved; None where no FLOPs are saved."""
        return (1 - self.time) / (1 - self.flops) if self.flops < 0.99 else None


def saving(step: Price, full: Price, gpu: str) -> Saving:
    """What a step leaves of the full one."""
    return Saving(
        step.roofline_us[gpu] / full.roofline_us[gpu],
        step.moved_bytes / full.moved_bytes,
        step.work.tensor / full.work.tensor,
        step.launches / full.launches,
    )
