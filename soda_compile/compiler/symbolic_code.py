"""Code of a graph whose sizes differ between calls."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from soda_compile.compiler.variants import Subgraph
from soda_compile.torch_internals.inductor import SizedCode, inductor_compile_symbolic
from soda_compile.torch_internals.inductor_patches import Compiled
from soda_compile.torch_internals.size_expressions import size_hint, value_at


@dataclass(frozen=True, eq=False)
class SymbolicCode:
    """Code of one graph for whatever sizes: compiled once, and again only for sizes that break its conditions.

    Attributes:
        subgraph: The graph.
        options: Settings for Inductor.
        made: What is compiled.
    """

    subgraph: Subgraph
    options: dict[str, Any]
    made: list[SizedCode] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        """Run the graph; the sizes come after the other inputs."""
        return self._like(inputs[len(inputs) - len(self.subgraph.sizes) :])(*inputs)

    def at_example(self) -> Compiled:
        """Return the code for the sizes that the graph was captured with."""
        return self._like([size_hint(node.meta["val"]) for node in self.subgraph.sizes])

    def at(self, sizes: Mapping[str, int]) -> Compiled:
        """Return the code for these sizes, by name."""
        return self._like([value_at(size.expression, sizes) for size in self.subgraph.sizes.values()])

    def _like(self, numbers: Sequence[int]) -> Compiled:
        with self._lock:
            for code in self.made:
                if code.holds(numbers):
                    return code.function
            given = [
                (size.expression, number) for size, number in zip(self.subgraph.sizes.values(), numbers, strict=True)
            ]
            with torch.inference_mode(False):  # compiled once, and called in whatever mode
                self.made.append(inductor_compile_symbolic(self.subgraph.module, given, self.options))
            return self.made[-1].function
