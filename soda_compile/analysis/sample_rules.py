"""How each operator moves the axis that counts the samples of a batch."""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from soda_compile.ir.ancestry import SHAPE_ONLY
from soda_compile.ir.aten_operators import ATTENTION, aten, can_be_stored, holds_tensor, packet, tensor_of
from soda_compile.torch_internals.tracing import fake_mode_of


@dataclass(frozen=True)
class SampleAxis:
    """The axis of a value that counts the samples of a batch, alone or folded with others.

    Attributes:
        axis: Its place in the value's shape.
        outer: What it counts around the samples, such as the tokens of [tokens * samples, features].
        samples: The samples in the batch.
        inner: What it counts inside each sample, such as the frames of [samples * frames, tokens, features].
    """

    axis: int
    outer: int
    samples: int
    inner: int

    @property
    def leads(self) -> bool:
        """Return whether the samples are the slowest part of the first axis."""
        return self.axis == 0 and self.outer == 1

    @property
    def size(self) -> int:
        """Return the size of the axis."""
        return self.outer * self.samples * self.inner

    def __str__(self) -> str:
        folded = (self.outer, self.samples, self.inner)
        return f"axis {self.axis}" + ("" if self.size == self.samples else " ({} x {} x {})".format(*folded))

    def bring_first(self, value: torch.Tensor) -> torch.Tensor:
        """Return a view whose first axis counts samples, or samples times frames; what was around them follows."""
        if self.leads:
            return value
        parts = [size for size in (self.outer, self.samples, self.inner) if size > 1]
        unfolded = value.view(*value.shape[: self.axis], *parts, *value.shape[self.axis + 1 :])
        return unfolded.movedim(self.axis + (self.outer > 1), 0)


@dataclass(frozen=True)
class LostSamples:
    """Samples that are mixed with each other, or that no rule follows; ``at`` names where."""

    at: str


Samples = SampleAxis | LostSamples | None
"""None for a value that is the same for all samples."""

Sources = Mapping[fx.Node, Samples | tuple[Samples, ...]]


def samples_after(node: fx.Node, sources: Sources) -> Samples | tuple[Samples, ...]:
    """Return where the samples are in a node's value, or in each of several values, from where they are before it."""
    if node.op != "call_function" or packet(node) in SHAPE_ONLY:
        return None
    if node.target is operator.getitem and isinstance(several := sources[node.all_input_nodes[0]], tuple):
        return several[node.args[1]]  # type: ignore[index]
    before = {source: sources[source] for source in node.all_input_nodes}
    axes = {source: axis for source, axis in before.items() if isinstance(axis, SampleAxis)}
    if not axes:
        return next((axis for axis in before.values() if isinstance(axis, LostSamples)), None)
    found = _rule(node)(node, axes) if all(map(_is_static, (node, *axes))) else None
    return found if found is not None else LostSamples(f"{node.name} ({packet(node)})")


def _is_static(node: fx.Node) -> bool:
    return can_be_stored(node) or not holds_tensor(node)


def _rule(node: fx.Node) -> Callable[[fx.Node, Mapping[fx.Node, SampleAxis]], Any]:
    if packet(node) in _RULES:
        return _RULES[packet(node)]
    return _elementwise if torch.Tag.pointwise in getattr(node.target, "tags", ()) else _grow


def _view(node: fx.Node, axes: Mapping[fx.Node, SampleAxis]) -> SampleAxis | None:
    """Find the axis in a new shape: elements keep their order, so each sample keeps its runs of elements."""
    (source,) = axes
    before = axes[source]
    run = before.inner * math.prod(tensor_of(source).shape[before.axis + 1 :])
    shape, after = tensor_of(node).shape, 1
    for axis in reversed(range(len(shape))):
        inner, rest = divmod(run, after)
        if inner and not rest and shape[axis] % (inner * before.samples) == 0:
            return SampleAxis(axis, shape[axis] // (inner * before.samples), before.samples, inner)
        after *= shape[axis]
    return None


def _elementwise(node: fx.Node, axes: Mapping[fx.Node, SampleAxis]) -> SampleAxis | None:
    """Align the operands at their last axes, as broadcasting does."""
    rank = tensor_of(node).ndim
    found = {replace(axis, axis=axis.axis + rank - tensor_of(source).ndim) for source, axis in axes.items()}
    return found.pop() if len(found) == 1 else None


def _attention(node: fx.Node, axes: Mapping[fx.Node, SampleAxis]) -> Samples | tuple[Samples, ...]:
    """Give the axis of the query; where there are several values, to the first, and nothing reads the others."""
    found = axes.get(node.args[0])  # type: ignore[arg-type]
    if found is None or not isinstance(node.meta["val"], list | tuple):
        return found
    return (found, *(LostSamples(node.name) for _ in node.meta["val"][1:]))


def _repeat_interleave(node: fx.Node, axes: Mapping[fx.Node, SampleAxis]) -> SampleAxis | None:
    (source,) = axes
    times, axis = node.args[1], node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")
    if not isinstance(times, int) or not isinstance(axis, int):
        return None
    mine = axes[source]
    return replace(mine, inner=mine.inner * times) if axis % tensor_of(source).ndim == mine.axis else mine


def _repeat(node: fx.Node, axes: Mapping[fx.Node, SampleAxis]) -> SampleAxis | None:
    (source,) = axes
    shift = tensor_of(node).ndim - tensor_of(source).ndim
    place = axes[source].axis + shift
    times: Any = node.args[1]
    return replace(axes[source], axis=place, outer=axes[source].outer * times[place])


def _grow(node: fx.Node, axes: Mapping[fx.Node, SampleAxis]) -> Samples | tuple[Samples, ...]:
    """Double the samples of the operands, and see which axis of the result doubles with them."""
    if len({(axis.outer, axis.samples, axis.inner) for axis in axes.values()}) > 1:
        return None
    axis = next(iter(axes.values()))
    for growing in ({source: own.axis for source, own in axes.items()}, _with_constants(node, axes)):
        grown = _run(node, growing)
        if grown is not None and (found := _doubled(node.meta["val"], grown, axis, f"{node.name} ({packet(node)})")):
            return found
    return None


def _with_constants(node: fx.Node, axes: Mapping[fx.Node, SampleAxis]) -> dict[fx.Node, int]:
    """Return the axis to grow in each operand; in one that is the same for all samples, the axis of the same size."""
    own, *others = set(axes.values())
    if others:
        return {}

    def is_alike(source: fx.Node) -> bool:
        shape = tensor_of(source).shape if can_be_stored(source) else ()
        return source in axes or (len(shape) > own.axis and shape[own.axis] == own.size)

    return dict.fromkeys(filter(is_alike, node.all_input_nodes), own.axis)


def _run(node: fx.Node, growing: Mapping[fx.Node, int]) -> Any:
    """Return the fake result of the operator with these axes doubled; None where it refuses."""

    def operand(source: fx.Node) -> Any:
        value = source.meta["val"]
        if source not in growing:
            return value
        shape = list(value.shape)
        shape[growing[source]] *= 2
        return value.new_empty(shape)

    try:
        with torch.no_grad(), fake_mode_of([source.meta.get("val") for source in node.all_input_nodes]):
            target: Any = node.target
            args, kwargs = fx.map_arg((node.args, node.kwargs), operand)
            return target(*args, **kwargs)
    except Exception:
        # Operators refuse sizes in their own ways, and then the samples are lost.
        return None


def _doubled(old: Any, new: Any, axis: SampleAxis, at: str) -> Samples | tuple[Samples, ...]:
    """Return the axis of a result that grew with the operands; of each result where there are several."""
    if isinstance(old, list | tuple):
        if len(old) != len(new):
            return None
        return tuple(_doubled_axis(*pair, axis) or LostSamples(at) for pair in zip(old, new, strict=True))
    return _doubled_axis(old, new, axis)


def _doubled_axis(old: torch.Tensor, new: torch.Tensor, axis: SampleAxis) -> SampleAxis | None:
    if not all(isinstance(size, int) for size in (*old.shape, *new.shape)):
        return None  # sizes that depend on data
    grown = [place for place, (one, other) in enumerate(zip(old.shape, new.shape, strict=True)) if one != other]
    if len(grown) != 1 or old.shape[grown[0]] != axis.size or new.shape[grown[0]] != 2 * axis.size:
        return None
    return replace(axis, axis=grown[0])


_RULES: dict[Any, Callable[[fx.Node, Mapping[fx.Node, SampleAxis]], Any]] = {
    **dict.fromkeys((aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten), _view),
    **dict.fromkeys(ATTENTION, _attention),
    aten.expand: _elementwise,
    aten.repeat_interleave: _repeat_interleave,
    aten.repeat: _repeat,
}
