"""Lowering of subgraphs: each distinct graph once, however often and wherever it is used."""

import logging
import operator
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from soda_compile.compiler.symbolic_code import SymbolicCode
from soda_compile.compiler.variants import Subgraph
from soda_compile.ir.aten_operators import holds_tensor, tensor_of
from soda_compile.storage.progress import progress_bar
from soda_compile.torch_internals.inductor import inductor_compile
from soda_compile.torch_internals.inductor_patches import Compiled, deferred_kernel_builds

log = logging.getLogger(__name__)

Target = Literal["inductor", "eager"]


@dataclass(frozen=True, eq=False)
class Lowering:
    """A store of compiled subgraphs.

    Attributes:
        options: Settings for Inductor.
        compiled: Functions by subgraph key.
        target: ``inductor`` compiles; ``eager`` runs the graphs operator by operator, to find faults without Inductor;
            a function stands for a compiler of its own.
    """

    options: dict[str, Any] = field(default_factory=dict)
    compiled: dict[str, Compiled] = field(default_factory=dict)
    target: Target | Callable[[Subgraph], Compiled] = "inductor"

    def compile(self, subgraphs: Iterable[Subgraph]) -> None:
        """Compile all subgraphs that are new, with a progress bar on a terminal."""
        new = {subgraph.key: subgraph for subgraph in subgraphs if subgraph.key not in self.compiled}
        if self.target != "inductor":
            make = self.target if callable(self.target) else operator.attrgetter("module")
            self.compiled.update({key: make(subgraph) for key, subgraph in new.items()})
            return
        with progress_bar() as progress, deferred_kernel_builds() if _on_cpu(new.values()) else nullcontext():
            for subgraph in progress.track(new.values(), description="compiling"):
                started = time.perf_counter()
                self.compiled[subgraph.key] = self._compile(subgraph)
                log.info(
                    "made the code of %s (%s) in %.1f s", subgraph.name, subgraph.key, time.perf_counter() - started
                )

    def _compile(self, subgraph: Subgraph) -> Compiled:
        if not subgraph.sizes:
            return inductor_compile(subgraph.module, self.options)
        code = SymbolicCode(subgraph, self.options)
        code.at_example()
        return code


def _on_cpu(subgraphs: Iterable[Subgraph]) -> bool:
    inputs = [node for subgraph in subgraphs for node in subgraph.graph.find_nodes(op="placeholder")]
    return all(tensor_of(node).device.type == "cpu" for node in inputs if holds_tensor(node))
