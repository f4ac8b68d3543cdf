"""One graph from Dynamo for many sizes: compiled once where it can be, and the runtime has what each size needs."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from soda_compile.backend.prepared import PreparedDenoiser
from soda_compile.torch_internals.symbolic_sizes import sizes_of

Run = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class BySize:
    """Runs what is compiled for the sizes of a call; called by Dynamo with the graph's inputs in order.

    Attributes:
        symbolic: Indices of the inputs whose sizes may differ between calls.
        compile: Compiles for the sizes of these inputs, and others like them.
        compiled: What runs, by sizes.
        prepared: What is compiled, and may serve further sizes.
    """

    symbolic: tuple[int, ...]
    compile: Callable[[Sequence[Any]], PreparedDenoiser | Run]
    compiled: dict[tuple[tuple[int, ...], ...], Run] = field(default_factory=dict)
    prepared: list[PreparedDenoiser] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def add(self, inputs: Sequence[Any], made: PreparedDenoiser | Run) -> "BySize":
        """Keep what was compiled for the sizes of these inputs."""
        if isinstance(made, PreparedDenoiser):
            self.prepared.append(replace(made, compile_seconds=None))
            made = made.for_inputs(inputs)
        self.compiled[self._sizes(inputs)] = made
        return self

    def __call__(self, *inputs: Any) -> Any:
        """Run the graph."""
        sizes = self._sizes(inputs)
        if sizes not in self.compiled:
            self.prepare(inputs)
        return self.compiled[sizes](*inputs)

    def prepare(self, inputs: Sequence[Any]) -> None:
        """Compile for the sizes of these inputs, unless that is done."""
        with self._lock:  # threads that come at once wait for the one that compiles
            if self._sizes(inputs) not in self.compiled:
                self.add(inputs, self._found(inputs) or self.compile(inputs))

    def serves(self, inputs: Sequence[Any]) -> bool:
        """Return whether calls of the sizes of these inputs need no compilation."""
        return self._sizes(inputs) in self.compiled or any(made.covers(inputs) for made in self.prepared)

    def _found(self, inputs: Sequence[Any]) -> Run | None:
        """Return what runs at the sizes of these inputs from what is compiled; None if nothing covers them."""
        return next((made.for_inputs(inputs) for made in self.prepared if made.covers(inputs)), None)

    def _sizes(self, inputs: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
        return sizes_of([inputs[index] for index in self.symbolic])
