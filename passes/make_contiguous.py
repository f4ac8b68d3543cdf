"""Makes values that go from block to block contiguous, so that equal blocks are equal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from soda_compile.analysis.blocks import block_labels
from soda_compile.ir.meta import meta_of
from soda_compile.ir.structure import Note
from soda_compile.passes.base import Pass, PassResult
from soda_compile.torch_internals.size_expressions import Expression, comparable, with_values

aten = torch.ops.aten


@dataclass(frozen=True)
class MakeContiguous(Pass):
    """Copies a permuted tensor to the contiguous layout where it leaves its block.

    Before; the patch embedding of a model hands its first block a transposed tensor, its other blocks get a
    contiguous one, so the first block would be compiled for itself::

        %h  : [B, N, D] strides (D*N, 1, N) = transpose(%patches, 1, 2)
        blocks.0: %h1 = block(%h)

    After::

        %h2 : [B, N, D] strides (N*D, D, 1) = clone(transpose(%patches, 1, 2), contiguous)
        blocks.0: %h1 = block(%h2)

    Valid because a clone has the same values; Inductor fuses it into what computes the tensor. Skipped for parts of
    a larger tensor (chunks of a modulation), and where a view inside a block relies on the permuted layout.
    """

    name: ClassVar[str] = "make_contiguous"
    optional: ClassVar[bool] = True

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrite ``graph`` in place."""
        changed: list[str] = []
        skipped: list[Note] = []
        blocks = block_labels(graph)
        for node in list(graph.nodes):
            if not (_leaves_its_block(node, blocks) and _is_permuted(node.meta.get("val"))):
                continue
            clone = _insert_clone(graph, node)
            try:
                values = _propagate(graph, clone)
            except (RuntimeError, ValueError) as error:
                clone.replace_all_uses_with(node)
                graph.erase_node(clone)
                skipped.append(Note(node.name, f"a view relies on its layout: {str(error).splitlines()[0]}"))
                continue
            for user, value in values.items():
                user.meta["val"] = value
            changed.append(node.name)
        return PassResult(tuple(changed), tuple(skipped))


def _leaves_its_block(node: fx.Node, blocks: Mapping[fx.Node, str]) -> bool:
    if node.op != "call_function":
        return False
    here = blocks.get(node)
    return any(user.op == "call_function" and blocks.get(user) not in (here, None) for user in node.users)


def _is_permuted(value: Any) -> bool:
    """Return whether the tensor fills its memory, but in another order of axes."""
    return (
        isinstance(value, torch.Tensor)
        and not value.is_contiguous()
        and torch.ops.aten.is_non_overlapping_and_dense.default(value)
    )


def _insert_clone(graph: fx.Graph, node: fx.Node) -> fx.Node:
    with graph.inserting_after(node):
        clone = graph.call_function(aten.clone.default, (node,), {"memory_format": torch.contiguous_format})
    node.replace_all_uses_with(clone, delete_user_cb=lambda user: user is not clone)
    clone.meta = {"val": node.meta["val"].contiguous(), "paths": meta_of(node).get("paths", ())}
    return clone


def _propagate(graph: fx.Graph, changed: fx.Node) -> dict[fx.Node, Any]:
    """Return the fake values that follow from a new layout, as far as they differ from those at hand."""
    values: dict[fx.Node, Any] = {changed: changed.meta["val"]}
    for node in graph.nodes:
        if node.op != "call_function" or node in values or not any(source in values for source in node.all_input_nodes):
            continue
        args, kwargs = with_values(fx.map_arg((node.args, node.kwargs), lambda source: values.get(source, source)))
        with torch.no_grad():
            value = node.target(*args, **kwargs)
        if _strides(value) != _strides(node.meta["val"]):
            values[node] = value
    return values


def _strides(value: Any) -> list[tuple[Expression, ...]]:
    tensors = value if isinstance(value, list | tuple) else [value]
    return [comparable(tensor.stride()) for tensor in tensors if isinstance(tensor, torch.Tensor)]
