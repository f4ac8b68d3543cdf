"""Conditioning as a stage of its own, whose results are ordinary inputs of the step program."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from soda_compile.compiler.index_sharing import IndexSharing
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.program import Program, assemble
from soda_compile.compiler.registers import Registers
from soda_compile.compiler.steps import StepBuilder, StepSubgraphs
from soda_compile.compiler.variants import Subgraph, results_bytes
from soda_compile.errors import CaptureError
from soda_compile.ir.structure import Structure
from soda_compile.torch_internals.size_expressions import Expression, size_hint, value_at
from soda_compile.torch_internals.stacking import add_axis

log = logging.getLogger(__name__)

MOST = 1.0
"""Memory that the conditioning of all steps may take, over that of the weights."""


@dataclass(frozen=True, eq=False)
class ConditioningStage:
    """Programs from the inputs of the captured graph to the values that the step program takes after these inputs.

    Attributes:
        conditions: Positions of the inputs, other than weights, that the values depend on.
        weights: Positions of the weights that they depend on.
        steps: Number of steps.
        one_step: Computes the values for one step.
        all_steps: Computes them for all steps, from conditions that are stacked, [steps, ...]; None if they take too
            much memory.
        memory_bytes: Memory of the values of all steps.
        memory: The same in terms of symbolic sizes.
        most_bytes: The most that it may be.
    """

    conditions: tuple[int, ...]
    weights: tuple[int, ...]
    steps: int
    one_step: Program
    all_steps: Program | None
    memory_bytes: int
    memory: Expression
    most_bytes: int

    def at(self, sizes: Mapping[str, int]) -> "ConditioningStage":
        """Return the stage for calls of these sizes, by name."""
        memory_bytes = value_at(self.memory, sizes)
        all_steps = self.all_steps if memory_bytes <= self.most_bytes else None
        return replace(
            self,
            one_step=self.one_step.at(sizes),
            all_steps=all_steps and all_steps.at(sizes),
            memory_bytes=memory_bytes,
        )


def build_stage(
    conditioning: Structure, steps: int, weight_bytes: int, lowering: Lowering, *, asked: bool
) -> ConditioningStage | None:
    """Compile conditioning for one step, and for all steps at once.

    Some models condition each token: for all steps that can be more than the model itself.

    Args:
        conditioning: The first structure that ``separate_conditioning`` returns.
        steps: Number of steps.
        weight_bytes: Memory of the denoiser's weights, which the values of all steps must not exceed.
        lowering: Store of compiled subgraphs.
        asked: Whether the user asked for it, who is told where it cannot be had; otherwise there is no stage there.

    Raises:
        CaptureError: If it was asked for, and an operator cannot be computed for all steps at once.
    """
    subgraphs = StepBuilder(conditioning).subgraphs(((),) * len(conditioning.calls))
    read = {name for call in conditioning.calls for name in call.inputs}
    used = [index for index, name in enumerate(conditioning.inputs) if name in read]
    conditions = tuple(index for index in used if not conditioning.parameters[index])
    weights = tuple(index for index in used if conditioning.parameters[index])
    memory, most_bytes = steps * results_bytes(subgraphs), int(MOST * weight_bytes)
    memory_bytes = value_at(memory, conditioning.hints)
    if memory_bytes > most_bytes:
        log.log(
            logging.WARNING if asked else logging.INFO,
            "conditioning is computed at each step: for all %d it takes %.0f MB, and the weights %.0f MB",
            steps, memory_bytes / 1e6, weight_bytes / 1e6,
        )  # fmt: skip
        if not asked:
            return None
        one_step = _program(conditioning, subgraphs, lowering)
        return ConditioningStage(conditions, weights, steps, one_step, None, memory_bytes, memory, most_bytes)
    varying = {conditioning.inputs[index] for index in conditions}
    varying |= {name for call in conditioning.calls for name in call.outputs}
    try:
        stacked = [_stacked(subgraph, steps, varying) for subgraph in subgraphs]
    except CaptureError as error:
        if asked:
            raise
        log.info("conditioning is computed at each step: %s", error)
        return None
    lowering.compile([*subgraphs, *stacked])  # at once, so that their kernels are built side by side
    one_step, all_steps = (_program(conditioning, each, lowering) for each in (subgraphs, stacked))
    return ConditioningStage(conditions, weights, steps, one_step, all_steps, memory_bytes, memory, most_bytes)


def _program(conditioning: Structure, subgraphs: Sequence[Subgraph], lowering: Lowering) -> Program:
    registers = Registers(conditioning, (), IndexSharing((), ()))
    return assemble(conditioning, [StepSubgraphs(tuple(subgraphs), ())], registers, lowering)


def _stacked(subgraph: Subgraph, steps: int, varying: set[str]) -> Subgraph:
    """Return the subgraph for all steps, the first axis of the values that vary between them."""
    batched = [name in varying for name in subgraph.inputs]
    sizes = [(size.expression, size_hint(node.meta["val"])) for node, size in subgraph.sizes.items()]
    try:
        module = add_axis(subgraph.module, steps, batched, sizes)
    except RuntimeError as error:
        raise CaptureError(
            f"{subgraph.name} cannot be computed for all steps at once: {error}. Compile with conditioning='step'"
        ) from error
    given = (graph.find_nodes(op="placeholder") for graph in (subgraph.graph, module.graph))
    for old, new, stacked in zip(*given, batched, strict=True):
        value = old.meta["val"]
        new.meta["val"] = value.new_empty((steps, *value.shape)) if stacked else value
    return replace(
        subgraph, key=f"{subgraph.key} {steps} {batched}", name=f"{subgraph.name}, {steps} steps", graph=module.graph
    )
