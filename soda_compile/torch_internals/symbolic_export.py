"""Export of a graph from Dynamo with the sizes symbolic that Dynamo made symbolic."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from soda_compile.torch_internals.size_expressions import (
    SizeNames,
    expression,
    free_symbols,
    is_varying,
    layout_of,
    size_hint,
)
from soda_compile.torch_internals.tracing import SizeGuards, size_guards


@dataclass(frozen=True)
class Place:
    """Where the inputs of a call tell a size.

    Attributes:
        position: Position of the input.
        axis: Index into the sizes of the input, and the strides after them; None where the input is the number itself.
    """

    position: int
    axis: int | None

    def read(self, inputs: Sequence[Any]) -> int:
        """Return the size in one call; in Dynamo's example, where it is symbolic, without a guard on it."""
        value = inputs[self.position]
        return size_hint(value if self.axis is None else layout_of(value)[self.axis])


@dataclass(frozen=True, eq=False)
class SymbolicSizes:
    """Sizes that differ between calls of one graph.

    Attributes:
        places: Where a call's inputs tell them, by the name of the symbol.
        symbols: The symbols, with the values that they have in the example.
    """

    places: Mapping[str, Place]
    symbols: Mapping[str, torch.SymInt]

    def of(self, inputs: Sequence[Any]) -> dict[str, int]:
        """Return the sizes of one call by name."""
        return {name: place.read(inputs) for name, place in self.places.items()}

    @property
    def hints(self) -> dict[str, int]:
        """Return the sizes of the example by name."""
        return {name: size_hint(size) for name, size in self.symbols.items()}

    @property
    def guards(self) -> SizeGuards:
        """Return what has been taken for granted about the sizes up to now."""
        return size_guards(self.symbols)

    def hold(self, sizes: Mapping[str, int]) -> bool:
        """Return whether what was taken for granted is so at these sizes."""
        if any((sizes[name] < 2) != (hint < 2) for name, hint in self.hints.items()):
            return False  # a size of 1 is broadcast, and 0 is nothing
        guards = self.guards
        return all(guards.holds(condition, sizes) for condition in guards.conditions)


@dataclass(frozen=True, eq=False)
class SymbolicExport:
    """An exported graph.

    Attributes:
        program: What ``torch.export`` gives.
        positions: For each of its inputs, the position in the graph from Dynamo; -1 for one that only tells a size.
        carried: For each of the latter the position of the number that it stands for.
    """

    program: Any
    positions: tuple[int, ...]
    carried: Mapping[int, int]


def export_symbolic(module: fx.GraphModule, inputs: Sequence[Any], decompositions: dict[Any, Any]) -> SymbolicExport:
    """Export a graph; its sizes keep the relations that Dynamo knows of, and get symbols of their own.

    Args:
        module: Graph from Dynamo, with its example values.
        inputs: Example inputs of fixed sizes.
        decompositions: What operators are written as, beside PyTorch's own.
    """
    from torch._guards import tracing

    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    nodes = graph.find_nodes(op="placeholder")
    examples = {node: node.meta.get("example_value") for node in nodes}
    axes = {node: _symbolic_axes(example) for node, example in examples.items()}
    numbers = [number for number, value in enumerate(inputs) if type(value) is int]
    taken = [number for number in range(len(inputs)) if number not in numbers]
    arguments = [inputs[number] for number in taken]
    shapes: list[Any] = [dict.fromkeys(axes[nodes[number]], torch.export.Dim.AUTO) for number in taken]
    varying = [number for number in numbers if free_symbols([examples[nodes[number]]])]
    told = _told_by_tensors(axes, examples)
    carried, last = {}, nodes[-1]
    for number in varying:
        if (symbol := expression(examples[nodes[number]])) not in told:
            with graph.inserting_after(last):
                last = graph.placeholder(f"{nodes[number].name}_numbers")
            carried[len(arguments)] = number
            arguments.append(torch.empty(inputs[number], 0, device="meta"))
            shapes.append({0: torch.export.Dim.AUTO})
            told[symbol] = (last, 0)
    with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
        known = {symbol: graph.call_method("size", place) for symbol, place in told.items()}
        _keep_relations(graph, known, axes, examples)
    for number in numbers:
        _replace(graph, nodes[number], known.get(expression(examples[nodes[number]]), inputs[number]))
    copy = fx.GraphModule(module, graph)
    with tracing(None):
        program = torch.export.export(copy, tuple(arguments), strict=False, dynamic_shapes=tuple(shapes))
        _environment(program.graph).shape_env.frozen = False  # what is found out from here on is noted too
        program = program.run_decompositions(decompositions)
    positions = (*taken, *(-1 for _ in carried))
    return SymbolicExport(program, positions, carried)


def adopt(export: SymbolicExport) -> SymbolicSizes:
    """Let the process trace under the environment of an exported graph from here on.

    Raises:
        LookupError: If no input tells one of the sizes.
    """
    from torch._guards import TracingContext

    graph = export.program.graph
    places: dict[str, Place] = {}
    symbols: dict[str, torch.SymInt] = {}
    tensors = [node.meta["val"] for node in graph.find_nodes(op="placeholder")][-len(export.positions) :]
    for number, (value, position) in enumerate(zip(tensors, export.positions, strict=True)):
        for axis, size in enumerate(layout_of(value)):
            # Symbols as they were made: conditions speak of those too that were found to follow from others.
            if isinstance(size, torch.SymInt) and size.node._expr.is_Symbol:
                name = size.node._expr.name
                carrier = position == -1
                places.setdefault(name, Place(export.carried[number], None) if carrier else Place(position, axis))
                symbols.setdefault(name, size)
    sizes = (size for node in graph.nodes for size in layout_of(node.meta.get("val")))
    if unknown := {symbol.name for symbol in free_symbols(filter(is_varying, sizes))} - places.keys():
        raise LookupError(f"no input tells the sizes {', '.join(sorted(unknown))}")
    TracingContext.get().fake_mode = _environment(graph)
    return SymbolicSizes(places, symbols)


def _environment(graph: fx.Graph) -> Any:
    """Return the fake mode of a graph."""
    values = [node.meta.get("val") for node in graph.find_nodes(op="placeholder")]
    return next(mode for mode in (getattr(value, "fake_mode", None) for value in values) if mode is not None)


def _symbolic_axes(example: Any) -> tuple[int, ...]:
    """Return the axes of an input whose size Dynamo made symbolic, and did not fix since."""
    shape = example.shape if isinstance(example, torch.Tensor) else ()
    return tuple(axis for axis, size in enumerate(shape) if free_symbols([size]))


def _told_by_tensors(axes: Mapping[fx.Node, Sequence[int]], examples: Mapping[fx.Node, Any]) -> dict[Any, Any]:
    """Return for each of Dynamo's symbols the input and the axis whose size it is, where there is one."""
    told: dict[Any, Any] = {}
    for node, symbolic in axes.items():
        for axis in symbolic:
            if (size := expression(examples[node].shape[axis])).is_Symbol:
                told.setdefault(size, (node, axis))
    return told


def _replace(graph: fx.Graph, number: fx.Node, value: int | fx.Node) -> None:
    """Put a number, or a node, in the place of an input that is a number."""
    for user in list(number.users):
        user.args, user.kwargs = fx.map_arg(
            (user.args, user.kwargs), lambda source: value if source is number else source
        )
    graph.erase_node(number)


def _keep_relations(
    graph: fx.Graph,
    known: Mapping[Any, fx.Node],
    axes: Mapping[fx.Node, Sequence[int]],
    examples: Mapping[fx.Node, Any],
) -> None:
    """Say how the sizes of inputs follow from each other, as Dynamo found, where export gives each its own symbol.

    Args:
        graph: The graph.
        known: A node for each of Dynamo's symbols.
        axes: Symbolic axes of inputs.
        examples: What the inputs are in Dynamo's symbols.
    """
    tracer = fx.proxy.GraphAppendingTracer(graph)
    names = SizeNames((symbol, fx.Proxy(node, tracer)) for symbol, node in known.items())
    for node, sizes in axes.items():
        for axis in sizes:
            wanted = expression(examples[node].shape[axis])
            if wanted.free_symbols <= known.keys() and not (wanted in known and known[wanted].args == (node, axis)):
                size = graph.call_method("size", (node, axis))
                same = names.of(wanted).node
                graph.call_function(torch._check, (graph.call_function(operator.eq, (size, same)),))
