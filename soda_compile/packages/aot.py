"""Compilation of subgraphs with AOTInductor: each distinct graph once, into files that a package takes."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soda_compile.compiler.variants import Subgraph
from soda_compile.errors import PackageError
from soda_compile.packages.conditions import broken
from soda_compile.packages.sizes import in_dimensions, show
from soda_compile.packages.spaces import Space
from soda_compile.storage.progress import progress_bar
from soda_compile.torch_internals.inductor import aot_compile
from soda_compile.torch_internals.size_expressions import Expression, value_at

log = logging.getLogger(__name__)

_SOURCES = (".cpp", ".h", ".kernel_metadata.json")
_WRAPPER = ".wrapper.cpp"
_STUB = "// The code is in the library beside this file, by whose name torch 2.11 finds the metadata.\n"


@dataclass(frozen=True)
class SubgraphCode:
    """Stands for a compiled subgraph, by its key, in a program that will be written to a file.

    Attributes:
        key: The key.
        sizes: How many of its inputs are sizes, which the compiled code takes first.
    """

    key: str
    sizes: int = 0

    def __call__(self, *inputs: Any) -> list[Any]:
        """Raise an error: nothing is compiled yet."""
        raise PackageError(f"subgraph {self.key} is compiled for a package and runs after soda_compile.load only")


@dataclass(frozen=True, eq=False)
class SizedSubgraph:
    """A subgraph, and the sizes that it is for.

    Attributes:
        subgraph: The subgraph.
        symbols: Its symbols as expressions in the dimensions, by name.
        space: The dimensions.
    """

    subgraph: Subgraph
    symbols: Mapping[str, Expression]
    space: Space

    def compile(self, options: dict[str, Any], folder: str) -> list[str]:
        """Compile into files in a folder; return their paths.

        Raises:
            PackageError: If Inductor makes code that does not hold for all sizes.
        """
        taken = [size.expression for size in self.subgraph.sizes.values()]
        sizes = {f"size_{number}": in_dimensions(size, self.symbols) for number, size in enumerate(taken)}
        middle = self.space.typical()
        hints = [value_at(size, middle) for size in sizes.values()]
        module = self.subgraph.module_over_tensors
        paths, guards = aot_compile(module, list(zip(taken, hints, strict=True)), options, folder)
        for condition, point in broken([(guards, sizes)], self.space):
            raise PackageError(
                f"{self.subgraph.name}: Inductor's code rests on {condition}, which does not hold at {show(point)}; "
                "leave that out of dynamic_shapes"
            )
        return paths


def compile_subgraphs(
    subgraphs: Mapping[str, SizedSubgraph], options: dict[str, Any], folder: Path
) -> dict[str, list[Path]]:
    """Compile subgraphs into files in a folder; give their paths by key.

    Raises:
        PackageError: If Inductor makes code that does not hold for all sizes.
    """
    files = {}
    with progress_bar() as progress:
        for key, sized in progress.track(subgraphs.items(), description="compiling for the package"):
            started = time.perf_counter()
            files[key] = _needed([Path(path) for path in sized.compile(options, str(folder / key))])
            log.info("compiled %s (%s) in %.1f s", sized.subgraph.name, key, time.perf_counter() - started)
    return files


def _needed(paths: Sequence[Path]) -> list[Path]:
    """Return the files without sources, of which only the name of one is needed."""
    for path in paths:
        if path.name.endswith(_WRAPPER):
            path.write_text(_STUB)
    return [path for path in paths if path.name.endswith(_WRAPPER) or not path.name.endswith(_SOURCES)]
