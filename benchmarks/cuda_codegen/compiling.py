"""Graphs compiled for a GPU that is not there: kernels, cubins, failures."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.cuda_codegen.boundaries import Kernel, kernels_listed
from benchmarks.cuda_codegen.cubins import Cubin, read_cubin
from benchmarks.cuda_codegen.datasheets import COMPILED_FOR
from benchmarks.cuda_codegen.fake_device import gpu_stood_in
from soda_compile.compiler.variants import Subgraph
from soda_compile.ir.roles import Slot
from soda_compile.torch_internals.inductor import inductor_compile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompiledGraph:
    """A graph with its code.

    Attributes:
        name: What it covers.
        kernels: Launches in order.
        cubins: Of generated kernels, each in all of Inductor's configurations.
        slots: Bytes of the slots that it takes, by name of Inductor's buffer.
        failure: Why it was not compiled; empty where it was.
        assembled: Whether kernels were compiled to cubins; otherwise only their source was generated.
        seconds: Spent on it.
    """

    name: str
    kernels: tuple[Kernel, ...]
    cubins: tuple[Cubin, ...]
    slots: Mapping[str, int]
    failure: str
    seconds: float
    assembled: bool = True


def compile_graphs(
    graphs: Mapping[str, Subgraph], capability: int, told: Callable[[str], None], seconds: float = math.inf
) -> dict[str, CompiledGraph]:
    """Compile graphs, by key, for GPUs of one compute capability.

    Args:
        graphs: The graphs.
        capability: The compute capability.
        told: Hears of each graph.
        seconds: Time after which kernels are not compiled to cubins any more, but still generated and counted.
    """
    made = {}
    end = time.perf_counter() + seconds
    for number, (key, subgraph) in enumerate(graphs.items(), 1):
        made[key] = compile_graph(subgraph, capability, assemble=time.perf_counter() < end)
        note = made[key].failure or f"{len(made[key].kernels)} kernels, {len(made[key].cubins)} cubins"
        told(f"{number} of {len(graphs)}: {subgraph.name}: {note} ({made[key].seconds:.1f} s)")
    return made


def compile_graph(subgraph: Subgraph, capability: int, assemble: bool = True) -> CompiledGraph:
    """Compile one graph; a failure is kept as its text. Without ``assemble`` kernels stay source."""
    started = time.perf_counter()
    binaries: list[tuple[str, Any]] = []

    def listen(kernel: str, results: list[Any]) -> None:
        binaries.extend((kernel, result) for result in results)

    kernels: tuple[Kernel, ...] = ()
    cubins: tuple[Cubin, ...] = ()
    failure = ""
    try:
        with gpu_stood_in(COMPILED_FOR[capability], listen if assemble else None), kernels_listed() as listed:
            inductor_compile(subgraph.module, {})
        kernels = tuple(kernel for graph in listed for kernel in graph.kernels)
        generated, launches = sum(not kernel.library for kernel in kernels), sum(graph.launches for graph in listed)
        if generated != launches:
            raise RuntimeError(f"{generated} kernels were counted, and the code launches {launches}")
        cubins = tuple(read_cubin(kernel, result, capability) for kernel, result in binaries)
    except Exception as error:
        log.debug("%s", subgraph.name, exc_info=True)
        failure = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - started
    return CompiledGraph(subgraph.name, kernels, cubins, slots_of(subgraph), failure, seconds, assemble)


def slots_of(subgraph: Subgraph) -> dict[str, int]:
    """Bytes of the slots among the inputs of a graph, by the names that Inductor gives its inputs."""
    found = {}
    for number, (node, end) in enumerate(
        zip(subgraph.graph.find_nodes(op="placeholder"), subgraph.inputs, strict=True)
    ):
        role = getattr(end, "role", None)
        if isinstance(role, Slot) and role.kind in ("cut", "scale"):
            value = node.meta["val"]
            found[f"arg{number}_1"] = value.numel() * value.element_size()
    return found
