"""A graph that runs without a plan although its model has one; its calls are counted as misses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from soda_compile.runtime.current import Outside, current_generation
from soda_compile.runtime.misses import Miss
from soda_compile.runtime.statistics import statistics_of


@dataclass(frozen=True, eq=False)
class PlainDenoiser:
    """Runs a graph as plain Inductor does; called by Dynamo with the graph's inputs in order.

    Attributes:
        run: The graph.
        miss: Why it runs without the plan.
        model_key: Index of an input that is a parameter; None if there is none, so that nothing can be counted.
        compile_seconds: Time that compiling took.
    """

    run: Callable[..., Any]
    miss: Miss
    model_key: int | None
    compile_seconds: float

    def __call__(self, *inputs: Any) -> Any:
        """Run the graph."""
        if self.model_key is not None:
            parameter = inputs[self.model_key]
            statistics = statistics_of(parameter)
            generation = current_generation(parameter)
            if isinstance(generation, Outside):
                statistics.miss(0, None, Miss("outside", generation.reason))
            elif generation is None:
                statistics.miss(0, None, self.miss)
            else:
                statistics.miss(generation.trajectory, generation.tally, self.miss)
        return self.run(*inputs)
