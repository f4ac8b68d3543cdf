"""The step programs of a package: one for each space of sizes, from one capture of the model."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from soda_compile.compiler.bind import require_fit
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.program import build_program
from soda_compile.compiler.variants import Subgraph
from soda_compile.errors import PackageError
from soda_compile.ir.structure import Structure
from soda_compile.packages.aot import SizedSubgraph, SubgraphCode
from soda_compile.packages.conditions import SizesGuarded, broken, other_values
from soda_compile.packages.manifest import ProgramEntry
from soda_compile.packages.program_file import encode
from soda_compile.packages.sizes import Point, show
from soda_compile.packages.spaces import Space
from soda_compile.packages.trace import ExampleInputs, ModelTensors, bind_example, trace
from soda_compile.plans.plan import Plan

log = logging.getLogger(__name__)

MOST_PARTS = 8


@dataclass(eq=False)
class Programs:
    """The step programs of a package.

    Attributes:
        weights: Takes the model's tensors.
        subgraphs: What the programs call, by key.
        tensors: What they hold, by name.
        structure: The captured model, at the first sizes.
    """

    model: torch.nn.Module
    plan: Plan
    weights: ModelTensors
    entries: list[ProgramEntry] = field(default_factory=list)
    subgraphs: dict[str, SizedSubgraph] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    structure: Structure | None = None

    def add(self, example: ExampleInputs, space: Space) -> None:
        """Add the program for a space of sizes, and one for each part of it in which the model is another graph.

        Raises:
            CaptureError: If the model cannot be captured as one graph.
            PlanError: If the plan does not fit the model.
            PackageError: If sizes at which the model is another graph cannot be told apart by a dimension, naming the
                sizes and the condition, or if there are many.
        """
        spaces = [space]
        while spaces:
            spaces += self._add_one(example, spaces.pop(0))
            if len(spaces) > MOST_PARTS:
                raise PackageError(
                    f"the model is another graph in {len(spaces)} parts of these sizes, as for {spaces[-1]}; give "
                    "dynamic_shapes smaller ranges, or export one size"
                )

    def _add_one(self, example: ExampleInputs, space: Space) -> list[Space]:
        """Add the program for what of a space is the same graph as in its middle; return the rest."""
        bound = bind_example(self.model, example)
        space.stretch(bound, middle := space.typical())
        try:
            traced = trace(self.model, bound, self.weights, self.plan.timestep_input, space)
        except RuntimeError as error:  # the model's own
            at = f" at {show(middle)}; leave such sizes out of dynamic_shapes" if middle else ""
            raise PackageError(f"{type(self.model).__name__} fails{at}: {error}") from error
        structure, symbols = traced.structure, traced.symbols
        require_fit(self.plan, structure)
        number = len(self.entries)
        made: dict[str, Subgraph] = {}

        def postpone(subgraph: Subgraph) -> SubgraphCode:
            # Symbols mean what they mean in one capture, so code with sizes is that of one program.
            key = f"{subgraph.key}_{number}" if subgraph.sizes else subgraph.key
            made[key] = replace(subgraph, key=key)
            return SubgraphCode(key, len(subgraph.sizes))

        program = build_program(structure, self.plan, Lowering(target=postpone))
        guards = [traced.guards, *([(structure.sizes.guards, symbols)] if structure.sizes is not None else [])]
        mine, rest = _of_one_graph(guards, space, middle)
        self.subgraphs |= {key: SizedSubgraph(subgraph, symbols, mine) for key, subgraph in made.items()}
        dims = {name: mine.ranges[name] for name in space.varying}
        self.entries.append(encode(program, traced.call, self.tensors, f"({number})", symbols, mine, dims))
        self.structure = self.structure or structure.example
        return rest


def _of_one_graph(guards: Sequence[SizesGuarded], space: Space, middle: Point) -> tuple[Space, list[Space]]:
    """Return the sizes at which all that capture, analysis and passes took for granted holds, and the others.

    Raises:
        PackageError: If one dimension does not tell them apart.
    """
    rest: list[Space] = []
    for name, values in other_values(guards, space).items():
        log.warning(
            "at %s the model is another graph than at %s, since %s does not hold there: these sizes have a program of "
            "their own", show({name: min(values)}), show(middle), values[min(values)],
        )  # fmt: skip
        space, others = space.split(name, values)
        rest += others
    for condition, point in broken(guards, space):
        raise PackageError(
            f"at {show(point)} the model is not the same as at {show(middle)}, since {condition} does not hold there; "
            "leave these sizes out of the range, or export them as another example"
        )
    return space, rest
