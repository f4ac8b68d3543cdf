"""The structure of a captured denoiser: blocks, and in each block its regions."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import fx

from soda_compile.ir.aten_operators import counts_collective
from soda_compile.ir.fixed_sizes import graph_at
from soda_compile.plans.notebook import as_text
from soda_compile.torch_internals.size_expressions import size_hint, value_at
from soda_compile.torch_internals.symbolic_export import SymbolicSizes

Made = TypeVar("Made")
STACK = "stack"
"""Kind of the region that has what all others add to the residual streams."""
OUTPUT_KIND = "output"
"""Kind of the region that is the denoiser's output."""


@dataclass(frozen=True)
class Cut:
    """A tensor that separates a region's heavy work from its residual add: what a slot stores.

    Attributes:
        node: Name of the node in the block graph.
        shape: Sizes, in elements; some may be symbolic.
        stride: Strides, in elements, as eager PyTorch would produce them.
        dtype: Element type.
        device: Where the tensor lives.
        memory_bytes: Size of one stored copy, in the example where sizes are symbolic.
    """

    node: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    memory_bytes: int

    @classmethod
    def like(cls, node: str, tensor: torch.Tensor) -> "Cut":
        """Return the layout of a tensor as that of a cut."""
        memory_bytes = math.prod(map(size_hint, tensor.shape)) * tensor.element_size()
        return cls(node, tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device, memory_bytes)

    def in_dtype(self, dtype: torch.dtype) -> "Cut":
        """Return the layout with elements of another dtype."""
        memory_bytes = self.memory_bytes // self.dtype.itemsize * dtype.itemsize
        return replace(self, dtype=dtype, memory_bytes=memory_bytes)

    def at(self, sizes: Mapping[str, int]) -> "Cut":
        """Return the layout where symbolic sizes have these values, by name."""
        shape, stride = (tuple(value_at(size, sizes) for size in layout) for layout in (self.shape, self.stride))
        return replace(self, shape=shape, stride=stride, memory_bytes=math.prod(shape) * self.dtype.itemsize)


@dataclass(frozen=True)
class Region:
    """One module of one block: the unit of decision.

    Attributes:
        name: Module path inside the block, such as ``attn1``; made unique within the block.
        kind: ``attention``, ``mlp``, ``convolution`` or ``attention+mlp``; ``STACK`` for all regions together,
            ``OUTPUT_KIND`` for the denoiser's output.
        cuts: Tensors to store. A joint attention has one for each of its residual streams.
        branches: Nodes that are added to the residual stream, in graph order; then skip outputs, which leave beside it.
        carries: For each branch, what it is added to; for a skip output that is not added here, the residual stream.
        flops: Work that dies when every cut is an input, for one call of the block.
        weights: Shapes of the weights whose work dies, in graph order; part of the model's fingerprint.
    """

    name: str
    kind: str
    cuts: tuple[Cut, ...]
    branches: tuple[str, ...]
    carries: tuple[str, ...]
    flops: int
    weights: tuple[tuple[int, ...], ...]

    @property
    def memory_bytes(self) -> int:
        """Return the size of one stored copy of all cuts."""
        return sum(cut.memory_bytes for cut in self.cuts)


@dataclass(frozen=True)
class Note:
    """A part that the analysis left alone, and why."""

    subject: str
    reason: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.reason}"


@dataclass(frozen=True, eq=False)
class BlockGraph:
    """A graph that one or more equal blocks share; parameters are inputs.

    Attributes:
        key: Hash of the canonical text; equal graphs have equal keys.
        module: The graph, with tensors as inputs and a tuple of tensors as output.
        regions: What can be reused in it.
        notes: Heavy work outside every region, with the reason.
        flops: Work of one call.
    """

    key: str
    module: fx.GraphModule = field(repr=False)
    regions: tuple[Region, ...]
    notes: tuple[Note, ...]
    flops: int


@dataclass(frozen=True, eq=False)
class BlockCall:
    """One use of a block graph in the denoiser: which values go in, which come out."""

    name: str
    block: BlockGraph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def region_names(self) -> tuple[str, ...]:
        """Return the full names of the regions, ``transformer_blocks.0.attn1``."""
        return tuple(f"{self.name}.{region.name}" if region.name else self.name for region in self.block.regions)


@dataclass(frozen=True, eq=False)
class Structure:
    """A denoiser as a list of block calls in execution order.

    Attributes:
        calls: Block calls; work between blocks belongs to the block after it, the first and last parts of the
            model, prologue and epilogue, are calls that plans and files know as ``(head)`` and ``(tail)``.
        inputs: Names of the values that the caller passes, in order.
        constants: Tensors that the model made while it ran, by value name.
        outputs: Names of the values to return, in order (None for a None).
        paths: For each input, its path in the model (``blocks.0.attn.weight``) or argument name.
        parameters: Which inputs are parameters or buffers of the model.
        notes: Values that passes over the whole graph left alone, with the reason.
        sizes: Sizes that differ between calls; None where all are fixed.
    """

    calls: tuple[BlockCall, ...]
    inputs: tuple[str, ...]
    constants: dict[str, torch.Tensor]
    outputs: tuple[str | None, ...]
    paths: tuple[str, ...]
    parameters: tuple[bool, ...]
    notes: tuple[Note, ...] = ()
    sizes: SymbolicSizes | None = None

    def __str__(self) -> str:
        """Return the tree of blocks and regions, with what was left alone."""
        from soda_compile.ir.tree import render  # which imports this module

        return render(self)

    def _repr_html_(self) -> str:
        """Return the tree, for notebooks."""
        return as_text(str(self))

    def __repr__(self) -> str:
        blocks = len({call.block.key for call in self.calls})
        return f"<Structure of {len(self.regions)} regions in {len(self.calls)} calls of {blocks} graphs>"

    @cached_property
    def region_names(self) -> tuple[str, ...]:
        """Return the full names of all regions, in execution order."""
        return tuple(name for call in self.calls for name in call.region_names)

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """Return all regions, in the order of ``region_names``."""
        return tuple(region for call in self.calls for region in call.block.regions)

    def for_each_region(self, make: Callable[[BlockGraph, int], Made]) -> tuple[Made, ...]:
        """Return the results of ``make`` for each region of each block; equal blocks share one call."""
        blocks = {call.block.key: call.block for call in self.calls}
        made = {key: tuple(make(block, index) for index in range(len(block.regions))) for key, block in blocks.items()}
        return tuple(result for call in self.calls for result in made[call.block.key])

    def at(self, sizes: Mapping[str, int]) -> "Structure":
        """Return the structure where symbolic sizes have these values, by name; itself where none are given."""
        if not sizes:
            return self

        def fixed(block: BlockGraph) -> BlockGraph:
            regions = (replace(region, cuts=tuple(cut.at(sizes) for cut in region.cuts)) for region in block.regions)
            module = fx.GraphModule(block.module, graph_at(block.module.graph, sizes))
            return replace(block, module=module, regions=tuple(regions))

        blocks = {call.block.key: call.block for call in self.calls}
        made = {key: fixed(block) for key, block in blocks.items()}
        return replace(self, calls=tuple(replace(call, block=made[call.block.key]) for call in self.calls), sizes=None)

    @property
    def hints(self) -> Mapping[str, int]:
        """Return the sizes of the example that differ between calls, by name."""
        return self.sizes.hints if self.sizes is not None else {}

    @cached_property
    def example(self) -> "Structure":
        """Return the structure at the sizes of the example."""
        return self.at(self.hints)

    @property
    def flops(self) -> int:
        """Return the work of one full call of the denoiser."""
        return sum(call.block.flops for call in self.calls)

    @cached_property
    def collectives(self) -> int:
        """Return how often one full call of the denoiser exchanges values with other processes."""
        return sum(counts_collective(node) for call in self.calls for node in call.block.module.graph.nodes)

    @cached_property
    def read_values(self) -> dict[str, Any]:
        """Return the fake tensor, or number, of each value that a call reads."""
        return {
            name: node.meta["val"]
            for call in self.calls
            for name, node in zip(call.inputs, call.block.module.graph.find_nodes(op="placeholder"), strict=True)
        }

    @property
    def weight_bytes(self) -> int:
        """Return the memory of the parameters and buffers that are read."""
        owned = [name for name, mine in zip(self.inputs, self.parameters, strict=True) if mine]
        values = [self.read_values[name] for name in owned if name in self.read_values]
        return sum(value.numel() * value.element_size() for value in values)

    @cached_property
    def fingerprint(self) -> str:
        """Identify the model's regions and weights, whatever the batch size, resolution and dtype."""
        return self.fingerprint_under(self.region_names)

    def fingerprint_under(self, names: Sequence[str]) -> str:
        """Return the fingerprint that the model has where its regions have these names, as inside a wrapper."""
        parts = [
            f"{name}|{region.kind}|{len(region.cuts)}|{region.weights}"
            for name, region in zip(names, self.regions, strict=True)
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
