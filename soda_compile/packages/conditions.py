"""The conditions of a model and of compiled code on dynamic sizes, and where they do not hold."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from soda_compile.capture.forward import CompiledForward
from soda_compile.errors import PackageError
from soda_compile.packages.arguments import flatten
from soda_compile.packages.sizes import Point, Size
from soda_compile.packages.spaces import Space
from soda_compile.packages.trace import ExampleInputs, bind_example
from soda_compile.torch_internals.tracing import SizeGuards, capture_failures, mark_dynamic, size_guards
from soda_compile.torch_internals.wrapped_tensors import flatten_inputs

# Points at which a condition is tried: all sizes, or that many spread over them.
_TRIED = 1024


def doubtful_points(model: torch.nn.Module, example: ExampleInputs, space: Space) -> list[tuple[str, Point]]:
    """Return sizes at which the model may be another graph, with Dynamo's condition that does not hold there.

    Runs the model once, in eager mode.

    Raises:
        PackageError: If the model holds for fixed sizes only.
    """
    bound = bind_example(model, example)
    space.stretch(bound, space.points()[-1])
    leaves = flatten(bound.arguments)
    for path, axes in space.axes.items():
        for axis in axes:
            mark_dynamic(leaves[path], axis)
    found: list[SizeGuards] = []

    def backend(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        fakes = [node.meta["example_value"] for node in module.graph.find_nodes(op="placeholder")]

        def run(*values: Any) -> Any:
            fake_of = {id(value): fake for value, fake in zip(flatten_inputs(values), fakes, strict=True)}
            axes = [(path, axis) for path in space.axes for axis in space.axes[path] if id(leaves[path]) in fake_of]
            found.append(size_guards({(path, axis): fake_of[id(leaves[path])].shape[axis] for path, axis in axes}))
            return module.forward(*values)

        return run

    try:
        with torch.no_grad():
            CompiledForward(model, backend)(*bound.args, **bound.kwargs)
    except capture_failures() as error:
        raise PackageError(f"{type(model).__name__} does not take dynamic sizes: {error}") from error
    return [
        (str(condition), point)
        for guards in found
        for condition, point in broken(guards, {key: space.axes[key[0]][key[1]] for key in guards.symbols}, space)
    ]


def broken(guards: SizeGuards, sizes: Mapping[Any, Size], space: Space) -> Iterator[tuple[Any, Point]]:
    """Yield conditions that do not hold everywhere, each with the smallest and the largest sizes where it does not.

    Args:
        guards: The conditions.
        sizes: What the conditions' symbols stand for, by their names.
        space: All sizes.
    """
    for condition in guards.conditions:
        about = guards.about(condition)
        failing: list[Point] = []
        roots = set().union(*(sizes[name].names for name in about)) & space.ranges.keys()
        for point in _spread({name: space.ranges[name] for name in sorted(roots)}):
            values = {name: low for name, (low, _) in space.ranges.items()} | point
            if not guards.holds(condition, {name: sizes[name].at(values) for name in about}):
                failing.append(values)
        yield from ((condition, values) for values in failing[:1] + failing[1:][-1:])


def _spread(ranges: Mapping[str, tuple[int, int]]) -> Iterator[dict[str, int]]:
    """Yield all points, or points spread evenly with the ends among them."""
    most = max(2, math.floor(_TRIED ** (1 / max(1, len(ranges))) + 1e-9))
    values = []
    for low, high in ranges.values():
        count = min(most, high - low + 1)
        values.append(dict.fromkeys(low + (high - low) * index // max(1, count - 1) for index in range(count)))
    for point in itertools.product(*values):
        yield dict(zip(ranges, point, strict=True))
