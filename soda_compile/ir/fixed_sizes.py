"""A graph of symbolic sizes at the sizes of one call."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from soda_compile.ir.graphs import copy_graph
from soda_compile.torch_internals.size_expressions import SizeArgument, follows_from_data, layout_of, value_at
from soda_compile.torch_internals.tracing import new_fake_mode


def graph_at(graph: fx.Graph, sizes: Mapping[str, int]) -> fx.Graph:
    """Return a copy of a graph, with the same names, in which symbolic sizes have these values, by name.

    Tensors whose sizes follow from data stay as they are.
    """
    mode = new_fake_mode()

    def fixed(value: Any) -> Any:
        if isinstance(value, SizeArgument):
            return value_at(value.value, sizes)
        if isinstance(value, torch.SymInt | torch.SymFloat) and not follows_from_data(value):
            return value_at(value, sizes)
        if not isinstance(value, torch.Tensor) or any(map(follows_from_data, layout_of(value))):
            return value
        shape, stride = ([value_at(size, sizes) for size in layout] for layout in (value.shape, value.stride()))
        with mode:
            return torch.empty_strided(shape, stride, dtype=value.dtype, device=value.device)

    made = copy_graph(graph)
    for node in made.nodes:
        node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), fixed)
        if "val" in node.meta:
            node.meta["val"] = fx.node.map_aggregate(node.meta["val"], fixed)
    return made
