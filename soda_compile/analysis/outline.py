"""Outlining of a captured denoiser into calls of block graphs that equal blocks share."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from soda_compile.analysis.blocks import split_blocks
from soda_compile.ir.aten_operators import is_heavy
from soda_compile.ir.graphs import extract
from soda_compile.ir.meta import meta_of


@dataclass(frozen=True, eq=False)
class Outlined:
    """One call of an outlined graph.

    Attributes:
        name: Name of the block, or ``(head)`` and ``(tail)`` for the prologue and epilogue of the model.
        key: Hash of the graph's canonical text; calls with equal keys share ``module``.
        module: The shared graph; its placeholders take ``inputs``, its output tuple gives ``outputs``.
        inputs: Names of the values it takes, in placeholder order.
        outputs: Names of the values it gives, in order.
    """

    name: str
    key: str
    module: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def outline_blocks(graph: fx.Graph, outputs: Sequence[str | None]) -> tuple[Outlined, ...]:
    """Cut a denoiser's graph into calls of graphs that equal blocks share, see ``soda_compile.analysis.blocks``.

    Before::

        %h0 = embed(%x)
        %h1 = linear(%h0, %w0)        # blocks.0
        %h2 = linear(%h1, %w1)        # blocks.1
        return %h2

    After, with one graph ``block(h, w) = linear(h, w)``::

        (head): h0 = embed(x);  blocks.0: h1 = block(h0, w0);  blocks.1: h2 = block(h1, w1)

    Valid because the graph is functional and runs in trace order: any cut of that order into consecutive runs
    keeps every value before its uses. Nodes that carry the path of a block's child outside the block's own module scope
    (an epilogue that borrows a block's embedder) stay outside.

    Args:
        graph: The denoiser's graph; it stays as it is.
        outputs: Names of the values that the denoiser returns.
    """
    runs = split_blocks(graph)
    made_by = {node.name: index for index, (_, nodes) in enumerate(runs) for node in nodes}
    used_later = {name for name in outputs if name}
    for index, (_, nodes) in enumerate(runs):
        used_later |= {
            source.name for node in nodes for source in node.all_input_nodes if made_by.get(source.name, index) != index
        }
    shared: dict[str, fx.GraphModule] = {}
    calls: list[Outlined] = []
    for name, nodes in runs:
        inside = set(nodes)
        sources = dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in inside)
        results = [node for node in nodes if node.name in used_later]
        module = extract(sources, nodes, results)
        key = _key(module.graph, name)
        ends = (tuple(node.name for node in sources), tuple(node.name for node in results))
        calls.append(Outlined(name, key, shared.setdefault(key, module), *ends))
    return tuple(calls)


def _key(graph: fx.Graph, name: str) -> str:
    """Hash a graph with the names of its heavy work inside the block."""
    block = name.partition("#")[0]
    modules = [(meta_of(node).get("paths") or ("",))[-1].removeprefix(block) for node in graph.nodes if is_heavy(node)]
    return hashlib.sha256("\n".join([canonical_key(graph), *modules]).encode()).hexdigest()[:16]


def canonical_key(graph: fx.Graph) -> str:
    """Hash operators, constants, wiring and input layouts, with node names left out."""
    numbers: dict[fx.Node, int] = {}
    lines: list[str] = []
    for node in graph.nodes:
        numbers[node] = len(numbers)
        if node.op == "placeholder":
            lines.append(f"input {_layout(node.meta['val'])}")
            continue
        arguments: Any = fx.map_arg((node.args, node.kwargs), lambda source: _Number(numbers[source]))  # type: ignore[arg-type, return-value]
        lines.append(f"{node.op} {node.target} {arguments!r}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Number:
    value: int

    def __repr__(self) -> str:
        return f"%{self.value}"


def _layout(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {value.stride()} {value.dtype} {value.device}"
    return repr(value)
