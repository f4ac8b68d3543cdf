"""Counts the arithmetic of generated kernels, operation by operation of their loops."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

SPECIAL = frozenset((
    "exp", "exp2", "expm1", "log", "log2", "log1p", "sin", "cos", "tan", "tanh", "erf", "rsqrt", "sqrt", "sigmoid",
    "reciprocal", "pow", "truediv", "libdevice_tanh",
))  # fmt: skip
"""Operations of the units for special functions, or of short programs that use them."""
FREE = frozenset((
    "load", "store", "store_reduction", "constant", "index_expr", "get_index", "to_dtype", "to_dtype_bitcast",
    "set_indirect", "check_bounds", "indirect_indexing", "masked", "output", "load_seed", "identity", "getitem",
))  # fmt: skip


@dataclass(frozen=True)
class Arithmetic:
    """Operations by unit.

    Attributes:
        tensor: Of tensor cores, a multiply-add being two.
        floats: Of the float32 units, one for each operation.
        special: Of the units for special functions.
    """

    tensor: int = 0
    floats: int = 0
    special: int = 0

    def __add__(self, other: "Arithmetic") -> "Arithmetic":
        return Arithmetic(self.tensor + other.tensor, self.floats + other.floats, self.special + other.special)


def arithmetic_of(nodes: Iterable[Any]) -> Arithmetic:
    """Operations of the loops that one kernel runs; ``nodes`` are those of Inductor's scheduler before fusion."""
    return sum((_of_loop(node) for node in nodes), Arithmetic())


def _of_loop(node: Any) -> Arithmetic:
    body = getattr(node, "_body", None)
    if body is None:
        return Arithmetic()
    points, reduced = (math.prod(int(size) for size in sizes) for sizes in node.get_ranges())
    graphs = [body.root_block.graph, *(block.graph for block in body.subblocks.values())]
    names = [
        str(each.target) for graph in graphs for each in graph.nodes if each.op in ("call_method", "call_function")
    ]
    work = [name for name in names if name not in FREE and not name.startswith("masked_subblock")]
    special = sum(name in SPECIAL for name in work)
    return Arithmetic(floats=(len(work) - special) * points * reduced, special=special * points * reduced)
