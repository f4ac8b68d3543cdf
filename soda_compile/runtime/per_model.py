"""What the run time keeps about a model, by a parameter: compiled calls know their model by that alone."""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from soda_compile.torch_internals.tracing import WeakIdKeyDictionary

Kept = TypeVar("Kept")


class PerModel(Generic[Kept]):
    """One object for each model, made when first asked for; it hangs, weakly, on a parameter, and ends with it."""

    def __init__(self, make: Callable[[], Kept]) -> None:
        self._make = make
        self._kept: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def find(self, parameter: torch.Tensor) -> Kept | None:
        """Return the object that hangs on a parameter; None if there is none."""
        found: Kept | None = self._kept.get(parameter)  # type: ignore[no-untyped-call]
        return found

    def of(self, parameter: torch.Tensor) -> Kept:
        """Return the object of the model that owns ``parameter``."""
        found = self.find(parameter)
        if found is None:
            found = self._kept.setdefault(parameter, self._make())  # type: ignore[no-untyped-call]
        return found
