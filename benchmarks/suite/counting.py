"""Counts of what one call of a denoiser makes the machine do: FLOPs, compiled graphs, kernels."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

# Operators that only describe or allocate memory.
NO_KERNEL = frozenset((
    "alias", "as_strided", "chunk", "contiguous", "detach", "empty", "empty_like", "empty_strided", "expand",
    "flatten", "is_nonzero", "item", "lift_fresh", "narrow", "numel", "numpy_T", "permute", "reshape",
    "_reshape_alias", "resize_", "resolve_conj", "resolve_neg", "result_type", "select", "set_", "size", "slice",
    "split", "split_with_sizes", "squeeze", "stride", "t", "to", "transpose", "unbind", "unflatten", "unsafe_split",
    "unsqueeze", "_unsafe_view", "view", "view_as",
))  # fmt: skip
GRAPH_CALL = "## Call CompiledFxGraph"
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")


@dataclass(frozen=True)
class Counts:
    """Of one call.

    Attributes:
        graph_calls: Calls of graphs that Inductor has compiled.
        kernels: Kernels on a GPU; on a CPU the operators and fused loops that read or write memory.
        launches: What the host launches on a GPU, a CUDA graph being one.
    """

    graph_calls: int
    kernels: int
    launches: int


def counts(call: Callable[[], Any], device: str) -> Counts:
    """Profiles one call."""
    cuda = [ProfilerActivity.CUDA] if device == "cuda" else []
    loops: Counter[str] = Counter()
    with _counted_loops(loops), profile(activities=[ProfilerActivity.CPU, *cuda]) as profiler:
        call()
        if device == "cuda":
            torch.cuda.synchronize()
    events: list[Any] = list(profiler.events())
    on_host = [event for event in events if event.device_type.name == "CPU"]
    graph_calls = sum(event.name.startswith(GRAPH_CALL) for event in on_host)
    launches = sum(event.name.startswith(LAUNCHES) for event in on_host)
    if device == "cuda":
        on_device = (event for event in events if event.device_type.name == "CUDA")
        kernels = sum(not event.name.startswith(("Memcpy", "Memset", "##", "Torch-")) for event in on_device)
    else:
        kernels = sum(_works(event) for event in events) + loops.total()
    return Counts(graph_calls, kernels, launches)


@contextmanager
def _counted_loops(loops: Counter[str]) -> Iterator[None]:
    """Counts calls of the fused loops that Inductor has compiled for the CPU, which the profiler does not see."""
    from torch._inductor.codecache import PyCodeCache

    compiled = [
        (module, name, function)
        for module in {id(module): module for module in PyCodeCache.modules}.values()
        for name, function in vars(module).items()
        if name.startswith("cpp_") and callable(function)
    ]

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            loops[name] += 1
            return function(*arguments)

        return call

    for module, name, function in compiled:
        setattr(module, name, counted(name, function))
    try:
        yield
    finally:
        for module, name, function in compiled:
            setattr(module, name, function)


def _works(event: Any) -> bool:
    """Whether an event of the CPU is an operator that calls no other."""
    if event.name.startswith(("mkl::", "mkldnn::", "onednn::")):
        return True
    return _operates(event) and not any(_operates(child) or _works(child) for child in event.cpu_children)


def _operates(event: Any) -> bool:
    namespace, _, name = event.name.partition("::")
    return namespace == "aten" and bool(name) and name not in NO_KERNEL


def flops_of(call: Callable[[], Any], device: str) -> int:
    """FLOPs of one eager call: products, convolutions and attention."""
    # The counter does not know the fused attention of the CPU.
    known = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()
    with known, FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
