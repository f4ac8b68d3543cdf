"""What the values of a graph depend on: weights, constants of a generation, the timestep, the sample."""

import enum

import torch
from torch import fx

from soda_compile.ir.aten_operators import QUANTISED, is_heavy, packet

aten = torch.ops.aten


class Dependence(enum.IntEnum):
    """Kind of input that a value depends on, as the highest level among its operands."""

    WEIGHTS = 0  # weights and constants
    CONSTANT = 1  # inputs that a generation does not change too, such as texts
    POOLED = 2  # inputs of two axes too, [batch, features], such as pooled texts
    TIMESTEP = 3  # inputs of at most one axis too, a number for each sample: the timestep, labels, guidance
    SAMPLE = 4  # the latents, and whatever else changes


def name_dtypes(graph: fx.Graph) -> None:
    """Name the dtype where an operator takes it from a tensor: a cast to the text's dtype needs no text."""
    for node in graph.find_nodes(op="call_function", target=aten.type_as.default):
        node.target = aten._to_copy.default  # in place, as regions know nodes by their names
        node.args, node.kwargs = node.args[:1], {"dtype": node.meta["val"].dtype}


def node_levels(graph: fx.Graph, inputs: tuple[Dependence, ...], level: Dependence) -> dict[fx.Node, Dependence]:
    """Return the level of each node of a block graph, whose part of ``level`` is separated."""
    levels = dict(zip(graph.find_nodes(op="placeholder"), inputs, strict=True))
    for node in graph.nodes:
        if node.op == "call_function":
            highest = max((levels[source] for source in node.all_input_nodes), default=Dependence.WEIGHTS)
            if level is Dependence.CONSTANT and is_heavy(node):  # products of weights alone are worth it too
                highest = max(highest, level)
            levels[node] = highest if _is_plain(node, level) else Dependence.SAMPLE
    return levels


def _is_plain(node: fx.Node, level: Dependence) -> bool:
    """Return whether the node gives the same for the same inputs, static shapes, and treats all steps alike."""
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return False
    if packet(node) in QUANTISED and level is not Dependence.CONSTANT:
        return False
    tags = getattr(node.target, "tags", ())
    unruly = (torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    return not any(tag in tags for tag in unruly)
