"""One graph and one step program for all sizes, from those that the compiler made for a few fixed sizes.

The analysis and the passes know fixed sizes only. They run at several sizes; what comes out must be the same but for
numbers, and those must be sums of products of the dynamic dimensions.
"""

import hashlib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from soda_compile.compiler.variants import Subgraph
from soda_compile.errors import PackageError
from soda_compile.packages.sizes import Point, Size, fit, fit_number, show

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Carrier:
    """An argument of the denoiser that tells a dimension: its register, and its layout at one size, and at all."""

    register: int
    like: torch.Tensor
    shape: tuple[int | Size, ...]
    stride: tuple[int | Size, ...]


def merge_json(values: Sequence[Any], points: Sequence[Point], place: str = "", sizes: bool = False) -> Any:
    """Return one JSON tree from one for each point, with sizes as text where lists of sizes differ.

    Raises:
        PackageError: If anything else differs, with the ``place`` in the whole; numbers may only among ``sizes``.
    """
    first = values[0]
    if all(value == first for value in values):
        return first
    if all(isinstance(value, dict) and value.keys() == first.keys() for value in values):
        return {
            key: merge_json([value[key] for value in values], points, f"{place}.{key}", key in ("shape", "stride"))
            for key in first
        }
    if all(isinstance(value, list) and len(value) == len(first) for value in values):
        return [merge_json(items, points, place, sizes) for items in zip(*values, strict=True)]
    size = fit(points, values) if sizes and all(isinstance(value, int) for value in values) else None
    if size is None:
        raise PackageError(f"the step program differs in {place.strip('.')}: {_differing(values, points)}")
    return size if isinstance(size, int) else str(size)


def merge_subgraphs(
    subgraphs: Sequence[Subgraph], points: Sequence[Point], carriers: Mapping[str, Carrier]
) -> tuple[Subgraph, tuple[str, ...]]:
    """Return one subgraph from the same subgraph at each point; ``carriers`` tell the dimensions.

    Raises:
        PackageError: If the graphs differ in more than sizes.

    Returns:
        The subgraph, and dimensions that none of its own inputs tells: it takes one more input for each that does.
        Placeholders with dynamic sizes have them with their strides in the meta ``layout``.
    """
    key = hashlib.sha256(repr([subgraph.key for subgraph in subgraphs]).encode()).hexdigest()[:16]
    try:
        graph, missing = _Merge([subgraph.graph for subgraph in subgraphs], points, carriers).run()
    except PackageError as error:
        raise PackageError(f"{subgraphs[0].name}: {error}") from None
    return replace(subgraphs[0], key=key, graph=graph), missing


class _Merge:
    """Goes through the graphs side by side."""

    def __init__(self, graphs: Sequence[fx.Graph], points: Sequence[Point], carriers: Mapping[str, Carrier]) -> None:
        self.graphs = graphs
        self.points = points
        self.carriers = carriers
        self.graph = fx.Graph()
        self.numbers = [{node: number for number, node in enumerate(graph.nodes)} for graph in graphs]
        self.made: list[fx.Node] = []  # by number in each graph
        self.roots: dict[str, fx.Node] = {}
        self.sizes: dict[Size, fx.Node] = {}
        self.fitted: dict[tuple[int, ...], int | Size | None] = {}

    def run(self) -> tuple[fx.Graph, tuple[str, ...]]:
        """Return the merged graph, and the dimensions whose carriers it takes after its own inputs."""
        if len({len(graph.nodes) for graph in self.graphs}) > 1:
            raise PackageError(f"another graph: {_differing([len(graph.nodes) for graph in self.graphs], self.points)}")
        rows = list(zip(*(graph.nodes for graph in self.graphs), strict=True))
        count = sum(nodes[0].op == "placeholder" for nodes in rows)
        for nodes in rows[:count]:
            self._placeholder(nodes)
        # All sizes first: they need inputs that come before all calls.
        wanted = dict.fromkeys(size for nodes in rows[count:] for size in self._sizes(nodes))
        missing = self._tell({name for size in wanted for name in size.names})
        for size in wanted:
            self.sizes[size] = self._compute(size)
        for nodes in rows[count:]:
            self._call(nodes)
        return self.graph, missing

    def _placeholder(self, nodes: Sequence[fx.Node]) -> None:
        values = [node.meta["val"] for node in nodes]
        if any(node.op != "placeholder" for node in nodes) or len({(x.dtype, x.ndim) for x in values}) > 1:
            raise PackageError("other inputs")
        node = self.graph.placeholder(nodes[0].name)
        shape = self._fit_all([value.shape for value in values], nodes[0])
        stride = self._fit_all([value.stride() for value in values], nodes[0])
        node.meta = {"val": values[0], "layout": (shape, stride)}
        self.made.append(node)

    def _fit_all(self, rows: Sequence[Sequence[int]], node: fx.Node) -> tuple[int | Size, ...]:
        return tuple(self._fit(values, node) for values in zip(*rows, strict=True))

    def _fit(self, values: Sequence[int], node: fx.Node) -> int | Size:
        if (key := tuple(values)) not in self.fitted:
            self.fitted[key] = fit(self.points, values)
        size = self.fitted[key]
        if size is None:
            raise PackageError(
                f"{node.name} has a size that is no sum of products of the dynamic dimensions: "
                f"{_differing(values, self.points)}"
            )
        return size

    def _tell(self, wanted: set[str]) -> tuple[str, ...]:
        """Find what tells each dimension that is needed; add carriers where nothing does."""
        for node in self.made:
            self._take_roots(node)
        layouts = [size for node in self.made for entry in node.meta["layout"] for size in entry]
        wanted |= {name for size in layouts if isinstance(size, Size) for name in size.names}
        missing = tuple(sorted(wanted - self.roots.keys()))
        for name in missing:
            carrier = self.carriers[name]
            node = self.graph.placeholder(f"tells_{name}")
            node.meta = {"val": carrier.like, "layout": (carrier.shape, carrier.stride)}
            self._take_roots(node, only=name)
        return missing

    def _take_roots(self, node: fx.Node, only: str | None = None) -> None:
        for axis, size in enumerate(node.meta["layout"][0]):
            if not isinstance(size, Size) or (form := size.linear) is None:
                continue
            name, scale, shift = form
            if name in self.roots or (only and name != only):
                continue
            self.roots[name] = node
            node.meta.setdefault("tells", {})[name] = (axis, scale, shift)

    def _compute(self, size: Size) -> fx.Node:
        tracer = fx.proxy.GraphAppendingTracer(self.graph)
        roots = {name: fx.Proxy(self._root(name), tracer) for name in size.names}
        return size.at(roots).node  # type: ignore[no-any-return]

    def _root(self, name: str) -> fx.Node:
        source = self.roots[name]
        if source.op == "placeholder":
            axis, scale, shift = source.meta["tells"][name]
            node = self.graph.call_function(aten.sym_size.int, (source, axis))
            if shift:
                node = self.graph.call_function(operator.sub, (node, shift))
            self.roots[name] = self.graph.call_function(operator.floordiv, (node, scale)) if scale != 1 else node
        return self.roots[name]

    def _sizes(self, nodes: Sequence[fx.Node]) -> list[Size]:
        found: list[Size] = []
        self._merge([(node.args, node.kwargs) for node in nodes], nodes[0], found.append)
        return found

    def _call(self, nodes: Sequence[fx.Node]) -> None:
        if len({(node.op, node.target) for node in nodes}) > 1:
            raise PackageError(f"another graph: {_differing([node.target for node in nodes], self.points)}")
        args, kwargs = self._merge([(node.args, node.kwargs) for node in nodes], nodes[0], lambda size: None)
        node = self.graph.create_node(nodes[0].op, nodes[0].target, args, kwargs)
        node.meta = {"val": nodes[0].meta.get("val")}
        self.made.append(node)

    def _merge(self, values: Sequence[Any], node: fx.Node, note: Any) -> Any:
        """Return one argument from the arguments at all points; ``note`` takes the sizes in it."""
        first = values[0]
        if all(isinstance(value, fx.Node) for value in values):
            numbers = {number[value] for number, value in zip(self.numbers, values, strict=True)}
            if len(numbers) == 1:
                number = numbers.pop()
                return self.made[number] if number < len(self.made) else None
        elif all(isinstance(value, tuple | list) and len(value) == len(first) for value in values):
            return type(first)([self._merge(items, node, note) for items in zip(*values, strict=True)])
        elif all(isinstance(value, dict) and value.keys() == first.keys() for value in values):
            return {name: self._merge([value[name] for value in values], node, note) for name in first}
        elif all(type(value) is int for value in values):
            size = self._fit(values, node)
            if isinstance(size, Size):
                note(size)
            return self.sizes.get(size, size) if isinstance(size, Size) else size
        elif all(type(value) is type(first) and value == first for value in values):
            return first
        elif all(type(value) is float for value in values) and (scale := fit_number(self.points, values)) is not None:
            note(scale)
            return self.sizes.get(scale, scale)
        raise PackageError(f"{node.name} takes other arguments: {_differing(values, self.points)}")


def _differing(values: Sequence[Any], points: Sequence[Point]) -> str:
    """Return two values that differ and where they are met."""
    other = next(index for index, value in enumerate(values) if value != values[0])
    return f"{values[0]} at {show(points[0])}, {values[other]} at {show(points[other])}"
