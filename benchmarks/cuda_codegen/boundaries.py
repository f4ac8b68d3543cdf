"""What each kernel of a graph reads and writes, from the nodes of Inductor's scheduler after fusion.

Each input counts once and each output once, as far as it is touched: what a kernel reads twice is taken for cached, a
slice for a slice, and a broadcast tensor for what it holds. Values that only live inside a kernel cost nothing.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import fx

from benchmarks.cuda_codegen.arithmetic import Arithmetic, arithmetic_of
from soda_compile.ir.aten_operators import flops as tensor_flops


@dataclass(frozen=True)
class Kernel:
    """One launch.

    Attributes:
        name: Of the kernel's first operation, or of the operator of a library.
        library: Whether the code is not generated, but cuBLAS's, cuDNN's or that of torch.
        reads: Bytes that go in, by name of the buffer.
        writes: Bytes that come out.
        work: What it computes.
    """

    name: str
    library: bool
    reads: dict[str, int]
    writes: dict[str, int]
    work: Arithmetic

    @property
    def read_bytes(self) -> int:
        return sum(self.reads.values())

    @property
    def written_bytes(self) -> int:
        return sum(self.writes.values())


@dataclass(frozen=True)
class GraphKernels:
    """The kernels of one graph.

    Attributes:
        kernels: In order.
        launches: Calls of generated kernels in the code that runs them.
        code: That code.
    """

    kernels: tuple[Kernel, ...]
    launches: int
    code: str


@contextmanager
def kernels_listed() -> Iterator[list[GraphKernels]]:
    """Collect the kernels of each graph for which Inductor generates code meanwhile."""
    from torch._inductor.graph import GraphLowering

    found: list[GraphKernels] = []
    codegen = GraphLowering.codegen

    def listen(graph: Any) -> Any:
        result = codegen(graph)
        code = result[0].value
        kernels = tuple(kernel for node in graph.scheduler.nodes for kernel in _kernels(graph, node))
        found.append(GraphKernels(kernels, code.count(".run("), code))
        return result

    with mock.patch.object(GraphLowering, "codegen", listen):
        yield found


def _kernels(graph: Any, node: Any) -> Iterator[Kernel]:
    from torch._inductor import scheduler

    if isinstance(node, scheduler.NopKernelSchedulerNode):
        return
    if isinstance(node, scheduler.GroupedSchedulerNode):
        for each in node.snodes:
            yield from _kernels(graph, each)
    elif isinstance(node, scheduler.ExternKernelSchedulerNode):
        yield from _library_kernel(node.node)
    else:
        yield _generated_kernel(graph, node)


def _generated_kernel(graph: Any, node: Any) -> Kernel:
    from torch._inductor.dependencies import MemoryDep

    own = set(node.get_buffer_names())
    aliases = graph.scheduler.mutation_real_name

    def total(dependencies: Iterable[Any], skipped: set[str]) -> dict[str, int]:
        touched: dict[str, set[Any]] = defaultdict(set)
        for each in dependencies:
            if isinstance(each, MemoryDep) and each.name not in skipped:
                touched[aliases.get(each.name, each.name)].add(each.normalize())
        return {name: _bytes(graph, name, found) for name, found in touched.items()}

    gone = graph.removed_buffers | graph.inplaced_to_remove
    return Kernel(
        name=_name(node),
        library=False,
        reads=total(node.read_writes.reads, own),
        writes=total(node.read_writes.writes, set(gone)),
        work=arithmetic_of(node.get_nodes()),
    )


def _name(node: Any) -> str:
    kinds = [
        origin.name for each in node.get_nodes() for origin in each.node.get_origins() if origin.op != "placeholder"
    ]
    return " ".join(sorted(set(kinds)))


def _bytes(graph: Any, name: str, dependencies: set[Any]) -> int:
    """Bytes of a buffer that some accesses touch: their sum, at most all of it."""
    size = math.prod(int(each) for each in graph.get_buffer(name).get_size()) if graph.try_get_buffer(name) else 0
    touched = sum(int(each.get_numel()) for each in dependencies)
    return int(min(touched, size or touched)) * int(graph.get_dtype(name).itemsize)


def _library_kernel(node: Any) -> Iterator[Kernel]:
    from torch._inductor import ir

    if isinstance(node, ir.MultiOutput):
        return
    origin = _origin(node)
    reads: dict[str, int] = defaultdict(int)
    for each in _flat(node.inputs):
        reads[each.get_name()] = max(reads[each.get_name()], _layout_bytes(each))
    changed = node.get_mutation_names()
    given = {name: size for name, size in reads.items() if name not in changed}
    in_place = dict.fromkeys(changed, max(given.values(), default=0))  # as index_put: what is put, not all of it
    yield Kernel(
        name=str(origin.target) if origin is not None else type(node).__name__,
        library=True,
        reads=given,
        writes=in_place or {node.get_name(): _output_bytes(node, origin)},
        work=Arithmetic(tensor=tensor_flops(origin) if origin is not None else 0),
    )


def _origin(node: Any) -> fx.Node | None:
    """The operator of the graph that a library's kernel computes."""
    if (origin := node.get_origin_node()) is not None:
        return origin  # type: ignore[no-any-return]
    return next((each for each in node.get_origins() if each.target is getattr(node, "op_overload", ())), None)


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        elif hasattr(value, "get_name") and value.has_tensor_output():
            yield value


def _layout_bytes(value: Any) -> int:
    sizes = [int(size) for size, stride in zip(value.get_size(), value.get_stride(), strict=True) if int(stride)]
    return math.prod(sizes) * int(value.get_dtype().itemsize)


def _output_bytes(node: Any, origin: fx.Node | None) -> int:
    made = origin.meta.get("val") if origin is not None else None
    if made is None:
        return _layout_bytes(node)
    values = made if isinstance(made, list | tuple) else [made]
    return sum(
        math.prod(int(size) for size in value.shape) * value.element_size()
        for value in values
        if isinstance(value, torch.Tensor) and value.device.type != "cpu"
    )
