"""Constants as a stage of its own: a call for each block, whose results are ordinary inputs of the step program."""

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import fx

from soda_compile.compiler.constants import separate_constants
from soda_compile.compiler.index_sharing import IndexSharing
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.program import Program, assemble
from soda_compile.compiler.registers import Registers
from soda_compile.compiler.steps import StepSubgraphs
from soda_compile.compiler.variants import Subgraph, join, make_variant, results_bytes
from soda_compile.ir.graphs import results_of
from soda_compile.ir.structure import Structure
from soda_compile.torch_internals.size_expressions import Expression, value_at

log = logging.getLogger(__name__)

MOST = 1.0
"""Memory that the constants of one branch of guidance may take, over that of the weights or of a copy of all cuts."""


@dataclass(frozen=True, eq=False)
class ConstantStage:
    """A program from the inputs of the captured graph to the values that the step program takes after these inputs.

    Attributes:
        program: Its one step has a call for each block that has constants.
        reads: For each of these calls the positions of the inputs that its results depend on, weights among them.
        weights: For each input whether it is a parameter or buffer.
        memory_bytes: Memory of all that the calls give.
        memory: The same in terms of symbolic sizes.
    """

    program: Program
    reads: tuple[frozenset[int], ...]
    weights: tuple[bool, ...]
    memory_bytes: int
    memory: Expression
    _needed: dict[frozenset[int], tuple[int, ...]] = field(default_factory=dict, init=False)

    def calls_for(self, values: frozenset[int]) -> tuple[int, ...]:
        """Return the numbers of the calls that some of the values take, in order."""
        if values not in self._needed:
            wanted = {self.program.outputs[value] for value in values}
            found = []
            for number, call in reversed(list(enumerate(self.program.steps[0]))):
                if not wanted.isdisjoint(call.results):
                    wanted.update(call.arguments)
                    found.append(number)
            self._needed[values] = tuple(reversed(found))
        return self._needed[values]

    def at(self, sizes: Mapping[str, int]) -> "ConstantStage":
        """Return the stage for calls of these sizes, by name."""
        return replace(self, program=self.program.at(sizes), memory_bytes=value_at(self.memory, sizes))

    def among(self, inputs: Collection[int]) -> frozenset[int]:
        """Return the numbers of the values among inputs of the step program, given by position."""
        first = len(self.weights)
        return frozenset(value for value in range(len(self.program.outputs)) if first + value in inputs)


def take_constants(
    structure: Structure, timestep: str | None, lowering: Lowering
) -> tuple[Structure, ConstantStage | None]:
    """Return what is left of a structure without its constants, and the stage that computes these.

    Args:
        structure: The denoiser.
        timestep: Path of the input that carries the timestep, where it is known.
        lowering: Store of compiled subgraphs.
    """
    split = separate_constants(structure, timestep)
    if split is None:
        return structure, None
    constants, remainder = split
    subgraphs = list(_subgraphs(constants))
    memory = results_bytes(subgraphs)
    memory_bytes = value_at(memory, structure.hints)
    cut_bytes = sum(region.memory_bytes for region in structure.regions)
    if memory_bytes > MOST * max(structure.weight_bytes, cut_bytes):
        log.warning(
            "what a generation does not change, %.0f%% of a step's work, is computed at each step: kept, it takes "
            "%.0f MB, the weights %.0f MB, and a copy of what regions keep %.0f MB",
            100 * constants.flops / structure.flops,
            memory_bytes / 1e6, structure.weight_bytes / 1e6, cut_bytes / 1e6,
        )  # fmt: skip
        return structure, None
    registers = Registers(constants, (), IndexSharing((), ()))
    program = assemble(constants, [StepSubgraphs(tuple(subgraphs), ())], registers, lowering)
    log.info(
        "%.0f%% of a step's work is computed once in a generation, and takes %.1f MB",
        100 * constants.flops / structure.flops, memory_bytes / 1e6,
    )  # fmt: skip
    reads = tuple(_reads(constants, subgraphs))
    return remainder, ConstantStage(program, reads, constants.parameters, memory_bytes, memory)


def _subgraphs(constants: Structure) -> Iterator[Subgraph]:
    """Yield a graph for each call, so that equal blocks share their code and each runs where it is needed."""
    read = {name for call in constants.calls for name in call.inputs} | set(filter(None, constants.outputs))
    for number, call in enumerate(constants.calls):
        needed = [name in read for name in call.outputs]
        if any(needed):
            yield join([(number, call, make_variant(call.block, (), needed))], read)


def _reads(constants: Structure, subgraphs: list[Subgraph]) -> Iterator[frozenset[int]]:
    """Yield the inputs that each graph depends on, by way of values of others too."""
    inputs: dict[object, frozenset[int]] = {name: frozenset([at]) for at, name in enumerate(constants.inputs)}
    for subgraph in subgraphs:
        graph = subgraph.graph
        depends: dict[fx.Node, frozenset[int]] = {}
        for node, name in zip(graph.find_nodes(op="placeholder"), subgraph.inputs, strict=True):
            depends[node] = inputs.get(name, frozenset())  # none for constants of the model
        for node in graph.nodes:
            if node.op == "call_function":
                depends[node] = frozenset().union(*(depends[source] for source in node.all_input_nodes))
        made = [depends[node] for node in results_of(graph)]
        inputs |= zip(subgraph.outputs, made, strict=True)
        yield frozenset().union(*made)
