"""The sizes that a package is made for: the dynamic dimensions, and what of the inputs has them."""

import inspect
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from soda_compile.errors import OptionError
from soda_compile.packages.arguments import copy_tensors, map_leaves
from soda_compile.packages.sizes import AxisSize, Point
from soda_compile.torch_internals.tracing import linear_dim

DynamicShapes = Mapping[str, Any]

MOST = 4096  # the largest value of a dimension; far more is tried than any denoiser's inputs have


@dataclass(frozen=True)
class Space:
    """The sizes that one program is for.

    Attributes:
        ranges: Smallest and largest value of each dimension. None of them is 1: at size 1 a model is another graph
            (of broadcasts), so it has a program of its own.
        axes: Size of each dynamic axis, by argument path.
        fixed: Sizes of all other axes.
        without: Values inside a range that are left out, as the model is another graph there.
    """

    ranges: Mapping[str, tuple[int, int]]
    axes: Mapping[str, Mapping[int, AxisSize]]
    fixed: frozenset[int] = frozenset()
    without: Mapping[str, frozenset[int]] = field(default_factory=dict)

    @property
    def varying(self) -> dict[str, tuple[int, int]]:
        """Return the dimensions that have several values."""
        return {name: (low, high) for name, (low, high) in self.ranges.items() if low < high}

    def values(self, name: str) -> list[int]:
        """Return all values of a dimension."""
        low, high = self.ranges[name]
        return [value for value in range(low, high + 1) if value not in self.without.get(name, ())]

    def split(self, name: str, others: Collection[int]) -> tuple["Space", list["Space"]]:
        """Return this space without some values of a dimension, and one space for each run of those."""
        kept = [value for value in self.values(name) if value not in others]
        rest = sorted(set(self.values(name)) - set(kept))
        runs = [list(run) for _, run in itertools.groupby(rest, key=lambda value: value - rest.index(value))]
        holes = frozenset(range(kept[0], kept[-1])) - set(kept)
        mine = replace(self._with_range(name, kept), without={**self.without, name: holes})
        return mine, [self._with_range(name, run) for run in runs]

    def _with_range(self, name: str, values: Sequence[int]) -> "Space":
        without = {other: holes for other, holes in self.without.items() if other != name}
        return replace(self, ranges={**self.ranges, name: (values[0], values[-1])}, without=without)

    def typical(self) -> dict[str, int]:
        """Return sizes in the middle of the ranges, where possible not those of other axes.

        A graph holds for the sizes at which those that are compared on the way are equal, and no others.
        """
        sizes = {name: low for name, (low, high) in self.ranges.items() if low == high}
        for name, (low, high) in self.varying.items():
            middle = sorted(self.values(name), key=lambda size: abs(size - (low + high + 1) // 2))
            taken = {*sizes.values(), *self.fixed}
            sizes[name] = next((size for size in middle if size not in taken), middle[0])
        return sizes

    def varying_axes(self, path: str) -> dict[int, AxisSize]:
        """Return the axes of an argument whose size takes several values."""
        return {axis: size for axis, size in self.axes.get(path, {}).items() if size.dim in self.varying}

    def stretch(self, bound: inspect.BoundArguments, point: Point) -> None:
        """Replace the arguments by copies with their dynamic axes at these sizes; their entries are repeated."""

        def resize(path: str, value: Any) -> Any:
            for axis, size in self.axes.get(path, {}).items():
                value = value.index_select(axis, torch.arange(size.at(point), device=value.device) % value.shape[axis])
            return value

        for name, value in copy_tensors(bound.arguments).items():
            bound.arguments[name] = map_leaves(resize, value, name)

    def split_at_one(self) -> Iterator["Space"]:
        """Yield spaces that cover this one, without 1 in any range of several values."""
        for name, (low, high) in self.ranges.items():
            if low == 1 < high:
                for part in ((1, 1), (2, high)):
                    yield from replace(self, ranges={**self.ranges, name: part}).split_at_one()
                return
        yield self


def space_of(leaves: Mapping[str, Any], shapes: DynamicShapes | None) -> Space:
    """Read what the user says is dynamic.

    Args:
        leaves: The arguments of the example call by path.
        shapes: By argument, as torch.export takes them: ``{axis: Dim}`` or a sequence with a Dim or None per axis;
            nested for arguments that are containers, or by path.

    Raises:
        OptionError: Naming what is not an argument, an axis or a range.
    """
    ranges: dict[str, tuple[int, int]] = {}
    axes: dict[str, dict[int, AxisSize]] = {}
    for path, entries in _entries(shapes or {}, leaves):
        for axis, dim in entries.items():
            value = leaves[path]
            if not isinstance(axis, int) or not -value.ndim <= axis < value.ndim:
                raise OptionError(f"dynamic_shapes: {path} has no axis {axis!r}; its shape is {list(value.shape)}")
            root, scale, shift = _linear(path, axis, dim)
            if ranges.setdefault(root.__name__, (root.min, root.max)) != (root.min, root.max):
                raise OptionError(f"dynamic_shapes: {root.__name__} has several ranges; use one Dim for one name")
            axes.setdefault(path, {})[axis % value.ndim] = AxisSize(root.__name__, scale, shift)
    tensors = {path: value for path, value in leaves.items() if isinstance(value, torch.Tensor)}
    fixed = (
        size
        for path, value in tensors.items()
        for axis, size in enumerate(value.shape)
        if axis not in axes.get(path, {})
    )
    return Space(ranges, axes, frozenset(fixed))


def batch_shapes(leaves: Mapping[str, Any], low: int, high: int) -> dict[str, Any]:
    """Return ``dynamic_shapes`` for a batch: the first axis of all tensors that are as long there as the first."""
    tensors = {path: value for path, value in leaves.items() if isinstance(value, torch.Tensor) and value.ndim}
    batch = next(iter(tensors.values())).shape[0]
    dim = torch.export.Dim("batch", min=low, max=high)
    return {path: {0: dim} for path, value in tensors.items() if value.shape[0] == batch}


def _entries(shapes: Any, leaves: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[int, Any]]]:
    for name, entry in shapes.items() if isinstance(shapes, Mapping) else enumerate(shapes):
        path = f"{prefix}{name}"
        if entry is None:
            continue
        if isinstance(leaves.get(path), torch.Tensor):
            dims = entry.items() if isinstance(entry, Mapping) else enumerate(entry)
            yield path, {axis: dim for axis, dim in dims if dim is not None}
        elif isinstance(entry, Mapping | Sequence) and any(leaf.startswith(f"{path}.") for leaf in leaves):
            yield from _entries(entry, leaves, f"{path}.")
        else:
            tensors = ", ".join(leaf for leaf, value in leaves.items() if isinstance(value, torch.Tensor))
            raise OptionError(f"dynamic_shapes: {path} is no tensor of the example inputs, which are {tensors}")


def _linear(path: str, axis: int, dim: Any) -> tuple[Any, int, int]:
    form = linear_dim(dim)
    if form is None:
        raise OptionError(
            f"dynamic_shapes: axis {axis} of {path} is {dim!r}; give it a name and a range: "
            "torch.export.Dim('batch', min=1, max=8)"
        )
    root = form[0]
    if not 1 <= root.min <= root.max:
        raise OptionError(f"dynamic_shapes: {root.__name__} goes from {root.min} to {root.max}; begin with 1 or more")
    if not isinstance(root.max, int) or root.max > MOST:
        raise OptionError(
            f"dynamic_shapes: {root.__name__} has no upper end below {MOST}; give it one: "
            f"torch.export.Dim({root.__name__!r}, min={root.min}, max=...)"
        )
    return form
