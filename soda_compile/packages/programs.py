"""The step program for one space of sizes: captured at one point of it, or at several and merged."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from soda_compile.compiler.bind import require_fit
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.program import build_program
from soda_compile.compiler.variants import Subgraph
from soda_compile.errors import CaptureError, PackageError
from soda_compile.ir.structure import Structure
from soda_compile.packages.aot import SubgraphCode
from soda_compile.packages.conditions import doubtful_points
from soda_compile.packages.manifest import ProgramEntry
from soda_compile.packages.merging import Carrier, merge_json, merge_subgraphs
from soda_compile.packages.program_file import encode
from soda_compile.packages.sizes import Point, read_size, show
from soda_compile.packages.spaces import Space
from soda_compile.packages.tensors import named_dtype
from soda_compile.packages.trace import ExampleInputs, ModelTensors, bind_example, trace
from soda_compile.plans.plan import Plan


@dataclass(frozen=True, eq=False)
class Sample:
    """A step program for fixed sizes, with the subgraphs that it calls, by key, and the tensors that it holds."""

    structure: Structure
    entry: ProgramEntry
    subgraphs: dict[str, Subgraph]
    tensors: dict[str, torch.Tensor]


@dataclass(eq=False)
class Programs:
    """The step programs of a package.

    Attributes:
        weights: Takes the model's tensors.
        subgraphs: What the programs call, by key, with the sizes that each is for.
        tensors: What they hold, by name.
        structure: The captured model, at the first sizes.
    """

    model: torch.nn.Module
    plan: Plan
    weights: ModelTensors
    entries: list[ProgramEntry] = field(default_factory=list)
    subgraphs: dict[str, tuple[Subgraph, Space]] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    structure: Structure | None = None

    def add(self, example: ExampleInputs, space: Space) -> None:
        """Add the program for a space of sizes, which the example is stretched to.

        Raises:
            CaptureError: If the model cannot be captured as one graph.
            PlanError: If the plan does not fit the model.
            PackageError: If one program does not do for all sizes, naming the sizes and what differs.
        """
        points = space.points()
        samples = [self._sample(example, space, point) for point in points]
        self.structure = self.structure or samples[0].structure
        entry, subgraphs = _merge(samples, points, space)
        for condition, point in doubtful_points(self.model, example, space) if space.varying else ():
            if point in points:
                continue
            points.append(dict(point))
            try:
                samples.append(self._sample(example, space, point))
                entry, subgraphs = _merge(samples, points, space)
            except (PackageError, CaptureError, RuntimeError) as error:
                raise PackageError(
                    f"at {show(point)} the model is not the same as at {show(points[0])}, since {condition} does not "
                    f"hold there; leave these sizes out of the range, or export them as another example: {error}"
                ) from error
        self.entries.append(entry)
        self.subgraphs |= subgraphs
        self.tensors |= samples[0].tensors

    def _sample(self, example: ExampleInputs, space: Space, point: Point) -> Sample:
        bound = bind_example(self.model, example)
        space.stretch(bound, point)
        structure, call = trace(self.model, bound, self.weights, self.plan.timestep_input)
        require_fit(self.plan, structure)
        subgraphs: dict[str, Subgraph] = {}
        tensors: dict[str, torch.Tensor] = {}

        def postpone(subgraph: Subgraph) -> SubgraphCode:
            subgraphs[subgraph.key] = subgraph
            return SubgraphCode(subgraph.key)

        program = build_program(structure, self.plan, Lowering(target=postpone))
        entry = encode(program, call, tensors, f"({len(self.entries)})")
        return Sample(structure, entry, subgraphs, tensors)


Subgraphs = dict[str, tuple[Subgraph, Space]]


def _merge(samples: Sequence[Sample], points: Sequence[Point], space: Space) -> tuple[ProgramEntry, Subgraphs]:
    """Return one program from those for fixed sizes."""
    first = samples[0]
    if len(samples) == 1:
        return first.entry, {key: (subgraph, space) for key, subgraph in first.subgraphs.items()}
    _require_equal_tensors(samples, points)
    trees: list[dict[str, Any]] = [sample.entry.model_dump() for sample in samples]
    arguments = merge_json([tree["call"]["arguments"] for tree in trees], points, "arguments")
    carriers = _carriers(first.entry, arguments, space)
    merged: dict[tuple[str, ...], tuple[Subgraph, tuple[str, ...]]] = {}
    for calls in zip(*(tree["calls"] for tree in trees), strict=False):
        keys = tuple(call["piece"] for call in calls)
        if keys not in merged:
            alike = [sample.subgraphs[key] for sample, key in zip(samples, keys, strict=True)]
            merged[keys] = merge_subgraphs(alike, points, carriers)
        subgraph, names = merged[keys]
        for call in calls:
            call["piece"] = subgraph.key
            call["arguments"] = [*call["arguments"], *(carriers[name].register for name in names)]
    for tree in trees:
        tree["flops"] = first.entry.flops
    tree = {**merge_json(trees, points), "dims": {name: list(ends) for name, ends in space.varying.items()}}
    return ProgramEntry.model_validate(tree), {one.key: (one, space) for one, _ in merged.values()}


def _require_equal_tensors(samples: Sequence[Sample], points: Sequence[Point]) -> None:
    first = samples[0].tensors
    for sample, point in zip(samples, points, strict=True):
        same_names = first.keys() == sample.tensors.keys()
        if not same_names or not all(torch.equal(first[name], tensor) for name, tensor in sample.tensors.items()):
            raise PackageError(
                f"a tensor that the model or the plan makes is another at {show(point)} than at {show(points[0])}, "
                "so one program cannot hold both; export these sizes as examples of their own"
            )


def _carriers(entry: ProgramEntry, arguments: dict[str, Any], space: Space) -> dict[str, Carrier]:
    """Return for each dimension an argument that tells it."""
    carriers: dict[str, Carrier] = {}
    for register, read in enumerate(entry.call.inputs):
        if read.kind == "weight":
            continue
        layout = arguments[read.name]
        shape, stride = (
            tuple(size if isinstance(size, int) else read_size(size) for size in layout[part])
            for part in ("shape", "stride")
        )
        for size in shape:
            form = None if isinstance(size, int) else size.linear
            if form:
                like = torch.empty(0, dtype=named_dtype(layout["dtype"]))
                carriers.setdefault(form[0], Carrier(register, like, shape, stride))
    for name in space.varying.keys() - carriers.keys():
        raise PackageError(f"no tensor that the denoiser reads has the size {name}")
    return carriers
