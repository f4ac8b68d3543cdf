"""Minimum cuts: the cheapest tensors that separate heavy work from the residual add, as far upstream as they can be."""

from collections.abc import Collection, Iterable

import networkx as nx
from torch import fx

from soda_compile.ir.aten_operators import can_be_stored, tensor_bytes


def minimum_cut(heavy: Iterable[fx.Node], branches: Iterable[fx.Node], between: Collection[fx.Node]) -> list[fx.Node]:
    """Find the minimum vertex cut with tensor bytes as capacities.

    Args:
        heavy: Nodes whose work must be avoidable.
        branches: Operands of the residual adds.
        between: The heavy nodes and all nodes from them to the branches.

    Returns:
        Nodes whose values, as inputs, make every node of ``heavy`` unnecessary for the branches; in graph order.
        Among cuts of equal bytes the one nearest to the heavy work, so that gates stay outside.
    """
    network = nx.DiGraph()
    for node in between:
        # A split's list of tensors cannot be stored; an empty tensor costs something, or it would always be cut.
        capacity = {"capacity": max(1, tensor_bytes(node))} if can_be_stored(node) else {}
        network.add_edge((node, "out"), (node, "in"), **capacity)
        for user in node.users:
            if user in between:
                network.add_edge((user, "in"), (node, "out"))
    for node in heavy:
        network.add_edge((node, "in"), "heavy")
    for node in branches:
        network.add_edge("branches", (node, "out"))
    # networkx returns the minimum cut nearest to the target, so the flow runs backwards, towards the heavy work.
    _, (near_branches, _) = nx.minimum_cut(network, "branches", "heavy")
    return [node for node in between if (node, "out") in near_branches and (node, "in") not in near_branches]
