"""Lowering of pieces: each distinct graph once, however often and wherever it is used."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from soda_compile.compiler.variants import Piece
from soda_compile.storage.progress import progress_bar
from soda_compile.torch_internals.inductor import inductor_compile
from soda_compile.torch_internals.inductor_patches import Compiled, deferred_kernel_builds

log = logging.getLogger(__name__)

Target = Literal["inductor", "eager"]


@dataclass(frozen=True, eq=False)
class Lowering:
    """A store of compiled pieces.

    Attributes:
        options: Settings for Inductor.
        compiled: Functions by piece key.
        target: ``inductor`` compiles; ``eager`` runs the graphs operator by operator, to find faults without Inductor.
    """

    options: dict[str, Any] = field(default_factory=dict)
    compiled: dict[str, Compiled] = field(default_factory=dict)
    target: Target = "inductor"

    def compile(self, pieces: Iterable[Piece]) -> None:
        """Compile all pieces that are new, with a progress bar on a terminal."""
        new = {piece.key: piece for piece in pieces if piece.key not in self.compiled}
        if self.target == "eager":
            self.compiled.update({key: piece.module for key, piece in new.items()})
            return
        with progress_bar() as progress, deferred_kernel_builds() if _on_cpu(new.values()) else nullcontext():
            for piece in progress.track(new.values(), description="compiling"):
                started = time.perf_counter()
                self.compiled[piece.key] = inductor_compile(piece.module, self.options)
                log.info("made the code of %s (%s) in %.1f s", piece.name, piece.key, time.perf_counter() - started)


def _on_cpu(pieces: Iterable[Piece]) -> bool:
    inputs = [node for piece in pieces for node in piece.module.graph.find_nodes(op="placeholder")]
    return all(node.meta["val"].device.type == "cpu" for node in inputs)
