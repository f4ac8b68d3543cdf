"""Cuts a captured denoiser into calls of block graphs that equal blocks share."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx


@dataclass(frozen=True, eq=False)
class Outlined:
    """One call of an outlined graph.

    Attributes:
        name: Name of the block, or ``(head)`` and ``(tail)`` for what comes before and after all blocks.
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


@dataclass(frozen=True)
class OutlineBlocks:
    """Outlines every element of a ModuleList that ran, outermost lists first.

    Before::

        %h0 = embed(%x)
        %h1 = linear(%h0, %w0)        # blocks.0
        %h2 = linear(%h1, %w1)        # blocks.1
        return %h2

    After, with one graph ``block(h, w) = linear(h, w)``::

        (head): h0 = embed(x);  blocks.0: h1 = block(h0, w0);  blocks.1: h2 = block(h1, w1)

    Valid because the graph is functional and runs in trace order: any cut of that order into consecutive runs
    keeps every value before its uses. Work between two blocks joins the block after it. Nodes that carry the path
    of a block's child without the block's own frame (an output head that borrows a block's embedder) stay outside.
    A model without a ModuleList comes out as one call, ``(model)``.
    """

    name: str = "outline_blocks"

    def apply(self, graph: fx.Graph, outputs: Sequence[str | None]) -> tuple[Outlined, ...]:
        """Cuts ``graph``; ``outputs`` are the names of the values the denoiser returns."""
        runs = list(_runs(graph))
        made_by = {node.name: index for index, (_, nodes) in enumerate(runs) for node in nodes}
        used_later = {name for name in outputs if name}
        for index, (_, nodes) in enumerate(runs):
            used_later |= {
                source.name
                for node in nodes
                for source in node.all_input_nodes
                if made_by.get(source.name, index) != index
            }
        shared: dict[str, fx.GraphModule] = {}
        calls: list[Outlined] = []
        for name, nodes in runs:
            inputs, results, module = _extract(nodes, used_later)
            key = canonical_key(module.graph)
            calls.append(Outlined(name, key, shared.setdefault(key, module), inputs, results))
        return tuple(calls)


def block_of(node: fx.Node) -> str | None:
    """Path of the outermost ModuleList element whose forward traced the node.

    A ModuleList is never called, so its element is a frame with a numeric name whose parent is no frame.
    """
    paths: tuple[str, ...] = node.meta.get("paths", ())
    for path in paths:
        parent, _, leaf = path.rpartition(".")
        if leaf.isdigit() and parent not in paths:
            return path
    return None


def _runs(graph: fx.Graph) -> Iterator[tuple[str, list[fx.Node]]]:
    """Consecutive nodes of one block, with what precedes a block joined to it (except before the first)."""
    body = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    groups = [(label, list(nodes)) for label, nodes in itertools.groupby(body, key=block_of)]
    seen: dict[str, int] = {}
    between: list[fx.Node] = []
    for position, (label, nodes) in enumerate(groups):
        if label is None:
            if position == 0:
                yield ("(model)" if len(groups) == 1 else "(head)"), nodes
            elif position == len(groups) - 1:
                yield "(tail)", nodes
            else:
                between = nodes
            continue
        seen[label] = seen.get(label, 0) + 1
        yield (label if seen[label] == 1 else f"{label}#{seen[label]}"), between + nodes
        between = []


def _extract(nodes: list[fx.Node], used_later: set[str]) -> tuple[tuple[str, ...], tuple[str, ...], fx.GraphModule]:
    """A graph of its own for ``nodes``; inputs in order of first use."""
    inside = set(nodes)
    sources: dict[fx.Node, None] = {}
    for node in nodes:
        sources |= dict.fromkeys(source for source in node.all_input_nodes if source not in inside)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for source in sources:
        copies[source] = graph.placeholder(source.name)
        copies[source].meta = {"val": source.meta["val"]}
    for node in nodes:
        copies[node] = graph.node_copy(node, lambda source: copies[source])
    results = [node for node in nodes if node.name in used_later]
    graph.output(tuple(copies[node] for node in results))
    module = fx.GraphModule(torch.nn.Module(), graph)
    return tuple(node.name for node in sources), tuple(node.name for node in results), module


def canonical_key(graph: fx.Graph) -> str:
    """Hash of operators, constants, wiring and input layouts, with node names left out."""
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
