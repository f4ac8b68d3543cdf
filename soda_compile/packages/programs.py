"""The step programs of a package: one for each space of sizes, from one capture of the model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from soda_compile.compiler.bind import require_fit
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.program import build_program
from soda_compile.compiler.variants import Subgraph
from soda_compile.errors import PackageError
from soda_compile.ir.structure import Structure
from soda_compile.packages.aot import SizedSubgraph, SubgraphCode
from soda_compile.packages.conditions import broken
from soda_compile.packages.manifest import ProgramEntry
from soda_compile.packages.program_file import encode
from soda_compile.packages.sizes import show
from soda_compile.packages.spaces import Space
from soda_compile.packages.trace import ExampleInputs, ModelTensors, bind_example, trace
from soda_compile.plans.plan import Plan
from soda_compile.torch_internals.size_expressions import Expression


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
        """Add the program for a space of sizes, to a point of which the example is stretched.

        Raises:
            CaptureError: If the model cannot be captured as one graph.
            PlanError: If the plan does not fit the model.
            PackageError: If one program does not do for all sizes, naming the sizes and the condition.
        """
        bound = bind_example(self.model, example)
        space.stretch(bound, space.typical())
        structure, call, symbols = trace(self.model, bound, self.weights, self.plan.timestep_input, space)
        require_fit(self.plan, structure)
        number = len(self.entries)

        def postpone(subgraph: Subgraph) -> SubgraphCode:
            # Symbols mean what they mean in one capture, so code with sizes is that of one program.
            key = f"{subgraph.key}_{number}" if subgraph.sizes else subgraph.key
            self.subgraphs[key] = SizedSubgraph(replace(subgraph, key=key), symbols, space)
            return SubgraphCode(key)

        program = build_program(structure, self.plan, Lowering(target=postpone))
        _require_one_graph(structure, symbols, space)
        self.entries.append(encode(program, call, self.tensors, f"({number})", symbols, space))
        self.structure = self.structure or structure.example


def _require_one_graph(structure: Structure, symbols: Mapping[str, Expression], space: Space) -> None:
    """Check that what capture, analysis and passes took for granted holds at all sizes."""
    if structure.sizes is None:
        return
    for condition, point in broken(structure.sizes.guards, symbols, space):
        raise PackageError(
            f"at {show(point)} the model is not the same as at {show(space.typical())}, since {condition} does not "
            "hold there; leave these sizes out of the range, or export them as another example"
        )
