"""Generated kernels of small denoisers under Triton's interpreter, against the same graphs run operator by operator.

The interpreter runs the very source that is compiled for a GPU, on tensors of the CPU. Products and attention are the
CPU's. Needs ``TRITON_INTERPRET=1`` from the start of the process, and float32: numpy has no bfloat16.
"""

import copy
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map

from benchmarks.cuda_codegen.boundaries import kernels_listed
from benchmarks.cuda_codegen.capturing import structure_on_gpu
from benchmarks.cuda_codegen.datasheets import COMPILED_FOR
from benchmarks.cuda_codegen.fake_device import gpu_stood_in
from benchmarks.cuda_codegen.interpreter import kernels_interpreted
from benchmarks.cuda_codegen.programs import programs_of
from benchmarks.cuda_codegen.small import SMALL
from soda_compile.compiler.variants import Subgraph
from soda_compile.ir.graphs import copy_graph
from soda_compile.torch_internals.inductor import inductor_compile


@dataclass(frozen=True)
class Difference:
    """How far generated kernels are from eager operators on one graph.

    Attributes:
        graph: What it covers.
        kernels: Generated kernels that were interpreted.
        error: Largest difference of any result or slot over its largest entry.
        failure: Why there is none.
    """

    graph: str
    kernels: int
    error: float | None
    failure: str = ""


def compare(subgraph: Subgraph, capability: int = 90, seed: int = 0) -> Difference:
    """Run one graph both ways on the same random inputs."""
    kernels = 0
    try:
        inputs = random_inputs(subgraph.graph, seed)
        ours, theirs = copy.deepcopy(inputs), copy.deepcopy(inputs)
        with ExitStack() as stack:
            stack.enter_context(kernels_interpreted())
            stack.enter_context(gpu_stood_in(COMPILED_FOR[capability], None))
            listed = stack.enter_context(kernels_listed())
            compiled = inductor_compile(subgraph.module, {})
            results = list(compiled(*ours))
        kernels = sum(graph.launches for graph in listed)
        with torch.no_grad():
            wanted = list(on_cpu(subgraph)(*theirs))
        return Difference(subgraph.name, kernels, difference([*results, *ours], [*wanted, *theirs]))
    except Exception as error:
        return Difference(subgraph.name, kernels, None, f"{type(error).__name__}: {error}")


def difference(results: Sequence[Any], wanted: Sequence[Any]) -> float:
    """Largest difference of any tensor over its largest entry."""
    pairs = [(one, other) for one, other in zip(results, wanted, strict=True) if isinstance(one, Tensor)]
    return max(_error(one.double(), other.double()) for one, other in pairs if one.numel())


def _error(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape or not one.isfinite().all():
        return float("inf")
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-6))


def random_inputs(graph: fx.Graph, seed: int) -> list[Any]:
    """A tensor of the CPU for each input of a graph, in its layout."""
    generator = torch.Generator().manual_seed(seed)

    def draw(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
        if value.is_floating_point():
            return made.copy_(torch.randn(value.shape, generator=generator).to(value.dtype))
        if value.dtype == torch.int64 and value.ndim == 2:  # chosen tokens
            return made.copy_(torch.arange(value.shape[1]).expand(value.shape))
        return made.fill_(1)

    return [draw(node.meta["val"]) for node in graph.find_nodes(op="placeholder")]


def on_cpu(subgraph: Subgraph) -> Callable[..., Any]:
    """The graph, run operator by operator on the CPU."""
    graph = copy_graph(subgraph.graph)

    def there(value: Any) -> Any:
        return torch.device("cpu") if isinstance(value, torch.device) else value

    for node in graph.nodes:
        node.args, node.kwargs = tree_map(there, node.args), tree_map(there, node.kwargs)
    return fx.GraphModule(torch.nn.Module(), graph)


def require_interpreter() -> None:
    """Check that Triton was told to interpret before it was imported."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise SystemExit("set TRITON_INTERPRET=1 in the environment: Triton reads it when kernels are defined")


def model_numerics(name: str, told: Callable[[str], None]) -> dict[str, Any]:
    """Compare all graphs of all kinds of steps of a small denoiser."""
    config = SMALL[name]
    structure = structure_on_gpu(config, torch.float32)
    graphs = programs_of(structure, steps=3).graphs
    found = []
    for subgraph in graphs.values():
        found.append(compare(subgraph))
        told(f"{config.title}: {found[-1]}")
    return {
        "name": name,
        "title": config.title,
        "graphs": len(found),
        "kernels": sum(each.kernels for each in found),
        "error": max((each.error for each in found if each.error is not None), default=None),
        "failures": [f"{each.graph}: {each.failure}" for each in found if each.failure],
    }
