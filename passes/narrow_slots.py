"""Keeps values in a narrower dtype than they are computed in."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx

from soda_compile.ir.graphs import add_call, add_input, add_output, output_of, results_of
from soda_compile.ir.roles import Slot
from soda_compile.ir.slot_formats import SlotFormat, narrows
from soda_compile.ir.structure import Region
from soda_compile.passes.base import Pass, PassResult
from soda_compile.torch_internals.tracing import fake_mode_of

aten = torch.ops.aten


@dataclass(frozen=True)
class NarrowSlots(Pass):
    """Rounds every cut of a region on its way to a slot, and widens it where it is read.

    Before, with a slot that is read and one that is written::

        %slot : [B, N, D] = placeholder
        %out  : [B, N, D] = add(%h, %slot)
        return (%out, %y)

    After, for ``float8``; a dtype without scales needs the cast alone::

        %slot  : float8 [B, N, D], %scale : float32 [B, N, 1] = placeholder
        %wide  : [B, N, D] = mul(_to_copy(%slot), %scale)
        %out   : [B, N, D] = add(%h, %wide)
        %new   : float32 [B, N, 1] = mul(clamp_min(amax(abs(%y), -1), tiny), 1 / 448)
        %round : float8 [B, N, D] = _to_copy(div(%y, %new))
        return (%out, %round, %new)

    Each row along the last axis has a scale of its own, so that an outlier takes precision from its own token alone.
    The step that computes a value goes on with it as it is. Runs last, as other passes look for what the slots hold in
    the dtype of the cuts. Cuts that are no wider than the slots stay as they are.
    """

    index: int
    region: Region
    kept: SlotFormat
    name: ClassVar[str] = "narrow_slots"

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrite ``graph`` in place."""
        for node in graph.find_nodes(op="placeholder"):
            if self._is_ours(node.meta.get("role"), node):
                self._narrow_input(graph, node)
        self._narrow_results(graph)
        return PassResult(changed=(f"{self.region.name} ({self.kept.name})",))

    def _is_ours(self, role: Any, node: fx.Node) -> bool:
        is_cut = isinstance(role, Slot) and role.kind == "cut" and role.region == self.index
        return is_cut and narrows(self.kept, node.meta["val"].dtype)

    def _narrow_input(self, graph: fx.Graph, node: fx.Node) -> None:
        """Let a placeholder be of the narrow dtype: its readers get what it stands for, and writers write that."""
        wide: torch.Tensor = node.meta["val"]
        writers = [user for user in node.users if user.target is aten.copy_.default and user.args[0] is node]
        readers = [user for user in node.users if user not in writers]
        scale = None
        node.meta["val"] = _empty_like(wide, wide.shape, self.kept.dtype)
        if self.kept.largest is not None:
            role = replace(node.meta["role"], kind="scale")
            scale = add_input(graph, f"{node.name}_scale", _empty_like(wide, _row_shape(wide), torch.float32), role)
        if readers:
            first = next(each for each in graph.nodes if each.op != "placeholder")
            with graph.inserting_before(first):
                widened = _widened(graph, node, scale, wide.dtype)
            for reader in readers:
                reader.replace_input_with(node, widened)
        for writer in writers:
            self._narrow_write(graph, writer, scale)

    def _narrow_write(self, graph: fx.Graph, writer: fx.Node, scale: fx.Node | None) -> None:
        slot, value = writer.all_input_nodes
        with graph.inserting_before(writer):
            narrow, new_scale = self._narrowed(graph, value)
            copies = [add_call(graph, aten.copy_.default, slot, narrow)]
            if scale is not None:
                copies.append(add_call(graph, aten.copy_.default, scale, new_scale))
        graph.erase_node(writer)

    def _narrow_results(self, graph: fx.Graph) -> None:
        """Hand narrow values over where the graph returns what slots shall hold."""
        output = output_of(graph)
        roles = output.meta.get("roles", ())
        results = list(results_of(graph))
        added: list[tuple[fx.Node, Slot]] = []
        for place, role in enumerate(roles, start=len(results) - len(roles)):
            if self._is_ours(role, results[place]):
                with graph.inserting_before(output):
                    results[place], scale = self._narrowed(graph, results[place])
                if scale is not None:
                    added.append((scale, replace(role, kind="scale")))
        output.args = (tuple(results),)
        for scale, role in added:
            add_output(graph, scale, role)

    def _narrowed(self, graph: fx.Graph, value: fx.Node) -> tuple[fx.Node, fx.Node | None]:
        """Return the rounded value, and the scales of its rows where it has some."""
        kept = self.kept
        if kept.largest is None:
            return add_call(graph, aten._to_copy.default, value, dtype=kept.dtype), None
        exact = _exact(graph, value)
        size = add_call(graph, aten.amax.default, add_call(graph, aten.abs.default, exact), [-1], True)
        least = add_call(graph, aten.clamp_min.default, size, torch.finfo(torch.float32).tiny * kept.largest)
        scale = add_call(graph, aten.mul.Tensor, least, 1 / kept.largest)
        rows = add_call(graph, aten.div.Tensor, exact, scale)
        if not kept.dtype.is_floating_point:
            rows = add_call(graph, aten.round.default, rows)
        return add_call(graph, aten._to_copy.default, rows, dtype=kept.dtype), scale


def _exact(graph: fx.Graph, value: fx.Node) -> fx.Node:
    if value.meta["val"].dtype == torch.float32:
        return value
    return add_call(graph, aten._to_copy.default, value, dtype=torch.float32)


def _widened(graph: fx.Graph, slot: fx.Node, scale: fx.Node | None, dtype: torch.dtype) -> fx.Node:
    if scale is None:
        return add_call(graph, aten._to_copy.default, slot, dtype=dtype)
    value = add_call(graph, aten.mul.Tensor, _exact(graph, slot), scale)
    return value if dtype == torch.float32 else add_call(graph, aten._to_copy.default, value, dtype=dtype)


def _row_shape(value: torch.Tensor) -> tuple[int, ...]:
    return (*value.shape[:-1], 1)


def _empty_like(value: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return the fake tensor of a slot: in the layout of the value, or dense for another shape."""
    with fake_mode_of((value,)):
        if tuple(shape) == tuple(value.shape):
            return torch.empty_strided(value.shape, value.stride(), dtype=dtype, device=value.device)
        return torch.empty(shape, dtype=dtype, device=value.device)
