"""The pass manager: every pass of the compiler runs here."""

from dataclasses import dataclass, field

from torch import fx

from soda_compile.ir.structure import Note
from soda_compile.passes.base import Pass, PassResult
from soda_compile.passes.observers import Observer, standard_observers


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run.

    Attributes:
        passes: The passes.
        observers: Who is asked before each pass, and told before and after it, in this order.
    """

    passes: tuple[Pass, ...]
    observers: tuple[Observer, ...] = field(default_factory=standard_observers)

    def run(self, graph: fx.Graph) -> PassResult:
        """Rewrite ``graph`` in place and return the results of all passes as one.

        A pass that an observer forbids is left out, with the observer's reason among those of the result.
        """
        changed: list[str] = []
        skipped: list[Note] = []
        for step in self.passes:
            result = self._run_pass(step, graph)
            changed += result.changed
            skipped += result.skipped
        return PassResult(tuple(changed), tuple(skipped))

    def _run_pass(self, step: Pass, graph: fx.Graph) -> PassResult:
        for observer in self.observers:
            if reason := observer.forbids(step):
                return PassResult(skipped=(Note(step.name, reason),))
        for observer in self.observers:
            observer.before(step, graph)
        result = step.apply(graph)
        for observer in self.observers:
            observer.after(step, graph, result)
        return result
