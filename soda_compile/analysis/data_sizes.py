"""Values whose size depends on data, as that of the tokens which a router sends to an expert.

They may come and go within a block. They cannot be kept for later steps, nor pass from one compiled graph to another.
"""

import operator
from collections.abc import Iterable

import torch
from torch import fx

from soda_compile.errors import CaptureError
from soda_compile.torch_internals.size_expressions import follows_from_data, free_symbols


def refuse_data_sizes(nodes: Iterable[fx.Node]) -> None:
    """Check that none of the values has a size that depends on data.

    Raises:
        CaptureError: Naming the first that has, the operator that the size comes from, and their modules.
    """
    for node in nodes:
        if symbols := _symbols(node.meta.get("val")):
            source = next(first for first in node.graph.nodes if symbols & _symbols(first.meta.get("val")))
            raise CaptureError(
                f"the size of a value depends on data: {_described(source)} gives it, and {_described(node)} is part "
                "of the residual stream or passes on to the next block, so it could not be kept from step to step. "
                "Let such sizes come and go inside one block, or compute all tokens and mask those that do not count"
            )


def _symbols(value: object) -> set[object]:
    if isinstance(value, list | tuple):
        return set().union(*map(_symbols, value))
    sizes = value.shape if isinstance(value, torch.Tensor) else (value,)
    return free_symbols(filter(follows_from_data, sizes))


def _described(node: fx.Node) -> str:
    maker = node.args[0] if node.target is operator.getitem else node
    assert isinstance(maker, fx.Node)
    paths = [path for path in maker.meta.get("paths", ()) if path]
    return f"{maker.target} in {paths[-1] if paths else 'the forward of the model'}"
