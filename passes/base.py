"""What a pass is, and what it says about its work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import fx

from soda_compile.ir.structure import Note


@dataclass(frozen=True)
class PassResult:
    """What a pass changed, and what it left alone with the reason."""

    changed: tuple[str, ...] = ()
    skipped: tuple[Note, ...] = ()


class Pass(Protocol):
    """A rewrite of one graph in place. Fields of the implementing dataclass are its parameters."""

    @property
    def name(self) -> str:
        """Short name, for logs and dumps."""

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrites ``graph``."""
