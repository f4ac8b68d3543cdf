"""Symbolic sizes inside the arguments of a graph, and the same graph with these sizes as inputs and operators."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx

Expression = Any
"""A sympy expression, for which there are no types."""


@dataclass(frozen=True, eq=False)
class SizeArgument:
    """A symbolic number as an argument of a node, where fx takes none as it is."""

    value: Any

    def __repr__(self) -> str:
        return str(expression(self.value))


def expression(size: Any) -> Expression:
    """Return a number, symbolic or not, as an expression in what is known of its symbols now."""
    return size.node.expr if isinstance(size, torch.SymInt | torch.SymFloat) else sympy.sympify(size)


def comparable(sizes: Iterable[Any]) -> tuple[Expression, ...]:
    """Return sizes as they can be compared without a guard: equal where they are so whatever the symbols are."""
    return tuple(map(expression, sizes))


def slice_bounds(start: Any, stop: Any, size: Any) -> tuple[Any, Any]:
    """Return where a slice begins and ends on an axis of this size, any of them symbolic."""

    def place(at: Any, default: Any) -> Any:
        if at is None:
            return default
        at = at + size if at < 0 else at
        return size if at > size else at

    return place(start, 0), place(stop, size)


def layout_of(value: Any) -> tuple[Any, ...]:
    """Return what of a value may be a symbolic size: sizes and strides of a tensor, an integer itself."""
    if isinstance(value, torch.Tensor):
        return (*value.shape, *value.stride())
    return (value,) if isinstance(value, int | torch.SymInt) else ()


def follows_from_data(value: Any) -> bool:
    """Return whether a value is a symbolic number that only the data tell."""
    return isinstance(value, torch.SymInt | torch.SymFloat) and not value.node.has_hint()


def is_varying(value: Any) -> bool:
    """Return whether a value is a symbolic number that follows from sizes of inputs, not from data."""
    return (
        isinstance(value, torch.SymInt | torch.SymFloat)
        and not follows_from_data(value)
        and bool(expression(value).free_symbols)
    )


def size_hint(size: Any) -> int:
    """Return the value that a symbolic size has in the example; a size that depends on data counts as the largest."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    if size.node.has_hint():
        return int(size.node.hint)
    upper = size.node.shape_env.bound_sympy(size.node.expr).upper
    return int(upper) if upper.is_Integer else 0


def for_any_sizes(size: Any) -> Expression:
    """Return a size in terms of the sizes of inputs; one that depends on data counts as the largest."""
    return expression(size_hint(size) if follows_from_data(size) else size)


def value_at(number: Any, sizes: Mapping[str, int]) -> Any:
    """Return a number, symbolic or an expression, where the symbols have these values, by name."""
    found = number if isinstance(number, sympy.Basic) else expression(number)
    known = {symbol: sympy.Integer(sizes[symbol.name]) for symbol in found.free_symbols if symbol.name in sizes}
    value = found.xreplace(known)
    return int(value) if value.is_Integer else float(value)


def keys_at(key: Any, sizes: Mapping[str, int]) -> Any:
    """Return a key with numbers for the expressions in it, where the symbols have these values, by name."""
    return tuple(value_at(part, sizes) if isinstance(part, sympy.Basic) else part for part in key)


def with_values(arguments: Any) -> Any:
    """Return arguments of a node with the values that nodes and symbolic numbers among them have."""

    def value(leaf: Any) -> Any:
        if isinstance(leaf, fx.Node):
            return leaf.meta["val"]
        return leaf.value if isinstance(leaf, SizeArgument) else leaf

    return fx.node.map_aggregate(arguments, value)


def as_arguments(values: Any) -> Any:
    """Return values as arguments of a node; symbolic numbers that are known by now as plain ones."""

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.SymInt | torch.SymFloat) or follows_from_data(value):
            return value
        return SizeArgument(value) if is_varying(value) else value_at(value, {})

    return fx.node.map_aggregate(values, wrap)


def inline_sizes(graph: fx.Graph) -> None:
    """Put symbolic numbers in the place of the nodes that compute them, so that the graph is one over tensors."""
    for node in graph.nodes:
        node.args, node.kwargs = fx.map_arg(
            (node.args, node.kwargs), lambda source: as_arguments(source.meta["val"]) if _is_number(source) else source
        )
    for node in reversed(graph.nodes):
        if _is_number(node) and node.op == "call_function":
            graph.erase_node(node)


def _is_number(node: fx.Node) -> bool:
    value = node.meta.get("val")
    symbolic = isinstance(value, torch.SymInt | torch.SymFloat) and not follows_from_data(value)
    return symbolic or (node.op == "call_function" and isinstance(value, int | float))


def sizes_read(graph: fx.Graph) -> list[torch.SymInt]:
    """Return the sizes that a graph is given or uses, as few as can tell all of them.

    Where all that matters is a number of tokens, ``s0*s1/4``, that is one expression, and no kernel need know of the
    height and width that it follows from.
    """
    given = [size for node in graph.find_nodes(op="placeholder") for size in layout_of(node.meta["val"])]
    used = [value for node in graph.nodes for value in _symbolic_arguments(node)]
    wanted = {expression(value): value for value in (*given, *used) if is_varying(value)}
    if not wanted:
        return []
    axes = dict.fromkeys(expression(value) for value in given if is_varying(value))
    found = []
    exprs = list(wanted)
    for whole in sorted((axis for axis in axes if not axis.is_Symbol), key=sympy.count_ops):
        name = sympy.Dummy(integer=True, positive=True)
        replaced = [_named(each, whole, name) for each in exprs]
        if replaced != exprs and not any(each.free_symbols & whole.free_symbols for each in replaced):
            found.append(whole)
            exprs = replaced
    rest = set().union(*(each.free_symbols for each in exprs)) if exprs else set()
    symbols = sorted((symbol for symbol in rest if not isinstance(symbol, sympy.Dummy)), key=lambda each: each.name)
    example = next(iter(wanted.values()))
    return [symbolic_like(example, each) for each in (*found, *symbols)]


def _named(wanted: Expression, whole: Expression, name: Expression) -> Expression:
    """Put a name for an expression inside another, in products too; never a root of it, as ``subs`` alone would."""
    made = wanted.subs(whole, name)
    plain = all(power.exp.is_Integer and power.exp > 0 for power in made.atoms(sympy.Pow))
    return made if plain else wanted.xreplace({whole: name})


def _symbolic_arguments(node: fx.Node) -> list[Any]:
    found: list[Any] = []

    def look(value: Any) -> Any:
        if isinstance(value, SizeArgument):
            found.append(value.value)
        return value

    fx.node.map_aggregate((node.args, node.kwargs), look)
    return found


def symbolic_like(value: Any, wanted: Expression) -> torch.SymInt:
    """Return an expression as a symbolic number beside another, with the value it has in the example."""
    hint = value.node.shape_env.replace(wanted).xreplace(
        {symbol: sympy.Integer(_hint_of(value.node.shape_env, symbol)) for symbol in wanted.free_symbols}
    )
    made: torch.SymInt = value.node.shape_env.create_symintnode(wanted, hint=int(hint))
    return made


def _hint_of(shape_env: Any, symbol: Any) -> int:
    known = getattr(shape_env, "backed_var_to_val", None) or shape_env.var_to_val  # its name before torch 2.10
    return int(known[symbol])


class SizeNames:
    """The expressions that stand for sizes in a graph of its own, by symbol, and what follows from them."""

    def __init__(self, given: Iterable[tuple[Expression, Any]]) -> None:
        """Name the expressions.

        Args:
            given: Expressions in the order of ``sizes_read``, and what stands for each: a proxy of a node, or a
                number, symbolic perhaps, of another environment.
        """
        self._symbols = {sympy.Dummy(integer=True, positive=True): each for each in given}

    def __call__(self, size: Any) -> Any:
        """Return what stands for a size; numbers stay as they are."""
        if not is_varying(size):
            return size if not isinstance(size, torch.SymInt) else int(expression(size))
        return self.of(expression(size))

    def of(self, wanted: Expression) -> Any:
        """Return what stands for an expression."""
        from torch.utils._sympy.interp import sympy_interp
        from torch.utils._sympy.reference import PythonReferenceAnalysis

        for symbol, (whole, _) in self._symbols.items():
            wanted = _named(wanted, whole, symbol)

        class Numbers(PythonReferenceAnalysis):
            @staticmethod
            def int_truediv(a: Any, b: Any) -> Any:
                return a / b  # which PyTorch has for expressions alone

            @staticmethod
            def trunc_to_int(x: Any, dtype: Any) -> Any:
                return torch.sym_int(x)  # type: ignore[no-untyped-call]  # the same

            @staticmethod
            def floor_to_int(x: Any, dtype: Any) -> Any:
                return torch.sym_int(x)  # type: ignore[no-untyped-call]  # what follows from sizes is positive

        return sympy_interp(Numbers, {name: value for name, (_, value) in self._symbols.items()}, wanted)


def with_size_nodes(graph: fx.Graph, given: Mapping[fx.Node, Expression], *, of_tensors: bool = False) -> fx.Graph:
    """Return a copy of a graph in which nodes compute what its arguments held as symbolic numbers.

    Args:
        graph: The graph.
        given: Its placeholders that take sizes, with what they take.
        of_tensors: Whether they take empty tensors instead, which have the size as that of their first axis. They come
            first then: AOTInductor cannot read a size of which it does not know yet what it follows from.
    """
    made = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    tracer = fx.proxy.GraphAppendingTracer(made)
    names: SizeNames | None = None
    known: dict[Expression, Any] = {}

    def put(argument: Any) -> Any:
        if not isinstance(argument, SizeArgument):
            return argument
        if (whole := expression(argument.value)) not in known:
            assert names is not None
            found = names.of(whole)
            known[whole] = found.node if isinstance(found, fx.Proxy) else found
        return known[whole]

    for node in (*given, *(node for node in graph.nodes if node not in given)) if of_tensors else graph.nodes:
        if node.op != "placeholder" and names is None:
            numbers = {size: _first_size(made, copies[size]) if of_tensors else copies[size] for size in given}
            names = SizeNames((whole, fx.Proxy(numbers[size], tracer)) for size, whole in given.items())
        copies[node] = made.node_copy(node, copies.__getitem__)
        if node.op != "placeholder":
            with made.inserting_before(copies[node]):
                copies[node].args, copies[node].kwargs = fx.node.map_aggregate(
                    (copies[node].args, copies[node].kwargs), put
                )
    return made


def _first_size(graph: fx.Graph, tensor: fx.Node) -> fx.Node:
    """Let a placeholder take an empty tensor in place of a size; return a node for that."""
    tensors = (node.meta.get("val") for node in graph.find_nodes(op="placeholder"))
    like = next(value for value in tensors if isinstance(value, torch.Tensor))
    tensor.meta = {"val": like.new_empty((tensor.meta["val"], 0))}
    return graph.call_function(torch.ops.aten.sym_size.int, (tensor, 0))


def free_symbols(sizes: Iterable[Any]) -> set[Any]:
    """Return the symbols in sizes."""
    return set().union(*(expression(size).free_symbols for size in sizes if isinstance(size, torch.SymInt)))
