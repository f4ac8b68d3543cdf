"""Compiles pieces with AOTInductor: each distinct graph once, into files that a package takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soda_compile.errors import PackageError
from soda_compile.lowering import Lowering, progress_bar
from soda_compile.torch_private import aot_compile
from soda_compile.variants import Piece

log = logging.getLogger(__name__)

_SOURCES = (".cpp", ".h", ".kernel_metadata.json")


@dataclass(frozen=True)
class PieceCode:
    """Stands for a compiled piece in a program that will be written to a file.

    Attributes:
        key: The piece's key.
    """

    key: str

    def __call__(self, *inputs: Any) -> list[Any]:
        """Never runs."""
        raise PackageError(f"piece {self.key} is compiled for a package and runs after soda_compile.load only")


@dataclass(frozen=True, eq=False)
class AheadOfTime(Lowering):
    """A store of pieces compiled into files; it stands where the JIT has a ``Lowering``.

    Attributes:
        folder: Where the files go.
        files: Paths by piece key.
    """

    folder: Path = field(kw_only=True)
    files: dict[str, list[Path]] = field(default_factory=dict)

    def compile(self, pieces: Iterable[Piece]) -> None:
        """Compiles all pieces that are new, with a progress bar on a terminal."""
        new = {piece.key: piece for piece in pieces if piece.key not in self.compiled}
        with progress_bar() as progress:
            for piece in progress.track(new.values(), description="compiling for the package"):
                started = time.perf_counter()
                files = aot_compile(piece.module, self.options, str(self.folder / piece.key))
                self.files[piece.key] = [Path(file) for file in files if not file.endswith(_SOURCES)]
                self.compiled[piece.key] = PieceCode(piece.key)
                log.info("compiled %s (%s) in %.1f s", piece.name, piece.key, time.perf_counter() - started)
