"""The interface of a pass: a frozen dataclass that rewrites one graph in place and says what it did."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from soda_compile.ir.structure import Note


@dataclass(frozen=True)
class PassResult:
    """The changes of a pass, and what it left alone with the reason."""

    changed: tuple[str, ...] = ()
    skipped: tuple[Note, ...] = ()


class Pass(ABC):
    """A rewrite of one graph in place. Fields of the implementing dataclass are its parameters.

    Attributes:
        name: Short name, for logs, dumps and switches.
        optional: Whether graphs mean the same without the pass, so that it can be left out in search of a fault.
    """

    name: ClassVar[str]
    optional: ClassVar[bool] = False

    @abstractmethod
    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrite ``graph``."""
