"""A graph from Dynamo that is compiled for the sizes at hand, and for others when they come; now or later."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from soda_compile.backend.attempt import Made, attempt, plain, unplanned
from soda_compile.backend.by_size import BySize
from soda_compile.backend.options import Options
from soda_compile.backend.prepared import PreparedDenoiser
from soda_compile.errors import OptionError, PlanError
from soda_compile.runtime.misses import Miss
from soda_compile.torch_internals.symbolic_sizes import fixed_sizes, lasting_copy, symbolic_inputs

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SizedGraph:
    """A graph, with which inputs have sizes that may differ between calls.

    Attributes:
        module: The graph, a copy that outlives Dynamo's.
        symbolic: Indices of these inputs.
    """

    module: fx.GraphModule
    symbolic: tuple[int, ...]

    @classmethod
    def of(cls, module: fx.GraphModule, inputs: Sequence[Any]) -> "SizedGraph":
        """Keep what is needed to compile after Dynamo has forgotten the graph; ``inputs`` are its examples."""
        return cls(lasting_copy(module), symbolic_inputs(inputs))

    def by_size(self, options: Options) -> BySize:
        """Return what runs the graph with inputs of whatever sizes; nothing is compiled before the first call."""
        return BySize(self.symbolic, lambda values: self._compile_for(values, options))

    def unplanned(self, options: Options) -> BySize:
        """Return what runs the graph without a plan; nothing is compiled before the first call."""

        def compile_for(values: Sequence[Any]) -> Callable[..., Any]:
            with fixed_sizes(values) as fixed:
                return unplanned(self.module, fixed, options)

        return BySize(self.symbolic, compile_for)

    def attempt(self, values: Sequence[Any], options: Options) -> Made:
        """Compile for inputs of the sizes of these, and of others if that can be; see ``attempt``."""
        if self.symbolic and not why_fixed(options):
            try:
                with fixed_sizes(values) as fixed:
                    return attempt(self.module, fixed, options, symbolic=True)
            except (PlanError, OptionError):
                raise
            except Exception as error:  # whatever symbolic sizes break, fixed ones may not
                log.warning(
                    "the denoiser is compiled for each size on its own, as symbolic sizes failed: %s: %s",
                    type(error).__name__, error,
                )  # fmt: skip
        with fixed_sizes(values) as fixed:
            return attempt(self.module, fixed, options)

    def _compile_for(self, values: Sequence[Any], options: Options) -> PreparedDenoiser | Callable[..., Any]:
        made = self.attempt(values, options)
        if made is None or isinstance(made, Miss):
            with fixed_sizes(values) as fixed:
                return plain(self.module, fixed, options, made)
        return made


def why_fixed(options: Options) -> str:
    """Return why graphs are compiled for each size on its own; empty where they need not be."""
    if options.observer is not None:
        return "it is measured"
    if options.plan is not None and options.plan.pruning is not None and options.plan.pruning.score == "random":
        return "the plan prunes tokens by random scores, which are drawn for a number of tokens"
    return ""
