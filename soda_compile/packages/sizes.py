"""How a size follows from the dynamic dimensions of a package: as an expression, and as the text of it in a file."""

import ast
import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]

from soda_compile.errors import PackageError
from soda_compile.torch_internals.size_expressions import Expression, expression

Point = Mapping[str, int]

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


@dataclass(frozen=True)
class AxisSize:
    """The size of an axis: a multiple of one dimension, plus a number.

    Attributes:
        dim: Name of the dimension.
        scale: Factor, 1 or more.
        shift: What is added.
    """

    dim: str
    scale: int = 1
    shift: int = 0

    @property
    def expression(self) -> Expression:
        """Return it as an expression in the dimension."""
        return self.scale * sympy.Symbol(self.dim, integer=True, positive=True) + self.shift

    def at(self, values: Point) -> int:
        """Return the size where the dimensions have these values."""
        return self.scale * values[self.dim] + self.shift


def written(size: Any, symbols: Mapping[str, Expression]) -> int | str:
    """Return a size as a package writes it: a number, or its text in the dimensions.

    Args:
        size: A number, symbolic or not, or an expression.
        symbols: The symbols of the captured graph as expressions in the dimensions, by name.

    Raises:
        PackageError: It takes more than sums, products, whole quotients and remainders.
    """
    found = in_dimensions(size, symbols)
    if found.is_Integer:
        return int(found)
    _parsed(str(found))
    return str(found)


def in_dimensions(size: Any, symbols: Mapping[str, Expression]) -> Expression:
    """Return a size as an expression in the dimensions; see ``written``."""
    found = expression(size)
    return found.xreplace({symbol: symbols[symbol.name] for symbol in found.free_symbols if symbol.name in symbols})


def size_at(size: int | str, values: Point) -> int:
    """Return the size in a package's description where the dimensions have these values."""
    return size if isinstance(size, int) else _evaluate(_parsed(size), values)


def show(point: Point) -> str:
    """Return ``batch=2, height=3``."""
    return ", ".join(f"{name}={value}" for name, value in point.items())


@functools.cache
def _parsed(text: str) -> ast.expr:
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        raise PackageError(f"{text!r} is no size of a package") from None
    for node in ast.walk(tree):
        known = isinstance(node, ast.BinOp | ast.Name | ast.Load | ast.UnaryOp | ast.USub) or type(node) in _OPERATORS
        if not known and not (isinstance(node, ast.Constant) and isinstance(node.value, int)):
            raise PackageError(f"a package can write sums, products and whole quotients of sizes, but not {text}")
    return tree


def _evaluate(node: ast.expr, values: Point) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name):
            return values[name]
        case ast.BinOp(left=left, op=sign, right=right):
            return _OPERATORS[type(sign)](_evaluate(left, values), _evaluate(right, values))
        case ast.UnaryOp(operand=operand):
            return -_evaluate(operand, values)
    raise AssertionError(node)  # _parsed has looked
