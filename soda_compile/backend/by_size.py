"""One graph from Dynamo for many sizes: each is compiled by the plan when it first comes, and Dynamo need not."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from soda_compile.torch_internals.symbolic_sizes import sizes_of


@dataclass(frozen=True, eq=False)
class BySize:
    """Runs what is compiled for the sizes of a call; called by Dynamo with the graph's inputs in order.

    Attributes:
        symbolic: Indices of the inputs whose sizes may differ between calls.
        compile: Compiles for the sizes of these inputs.
        compiled: What is compiled, by sizes.
    """

    symbolic: tuple[int, ...]
    compile: Callable[[Sequence[Any]], Callable[..., Any]]
    compiled: dict[tuple[tuple[int, ...], ...], Callable[..., Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def add(self, inputs: Sequence[Any], compiled: Callable[..., Any]) -> "BySize":
        """Keep what was compiled for the sizes of these inputs."""
        self.compiled[self._sizes(inputs)] = compiled
        return self

    def __call__(self, *inputs: Any) -> Any:
        """Run the graph."""
        sizes = self._sizes(inputs)
        if sizes not in self.compiled:
            with self._lock:  # threads that come at once wait for the one that compiles
                if sizes not in self.compiled:
                    self.compiled[sizes] = self.compile(inputs)
        return self.compiled[sizes](*inputs)

    def _sizes(self, inputs: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
        return sizes_of([inputs[index] for index in self.symbolic])
