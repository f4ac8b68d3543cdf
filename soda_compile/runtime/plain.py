"""A graph that runs without a plan although its model has one; its calls are counted as misses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from soda_compile.runtime.batching import Together
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
            miss = Miss("outside", generation.reason) if isinstance(generation, Outside) else self.miss
            for each in generation.generations if isinstance(generation, Together) else (generation,):
                statistics.miss(each, miss)
        return self.run(*inputs)
