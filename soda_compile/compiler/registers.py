"""Allocation of a register to every value, slot and per-step constant of a program."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from soda_compile.compiler.index_sharing import IndexSharing
from soda_compile.compiler.schedule import Access
from soda_compile.compiler.variants import CallRole
from soda_compile.ir.roles import CoefficientInput, IndexInput, RandomInput, SlotInput, StepInput, TrackInput
from soda_compile.ir.structure import Cut, Structure
from soda_compile.plans.pruning import random_scores


class Registers:
    """Registers by name or key: inputs first, then constants; slots and per-step constants as they are met.

    Attributes:
        tensors: Constants and coefficients, by register.
        slots: Layouts of slots, by register.
    """

    def __init__(self, structure: Structure, starts: Sequence[int], sharing: IndexSharing) -> None:
        """Number the inputs and constants of a structure.

        Args:
            structure: The denoiser.
            starts: For each call the number of its first region.
            sharing: Groups of regions that share a choice of tokens.
        """
        self.structure = structure
        self.starts = starts
        self.sharing = sharing
        self._numbers: dict[Hashable, int] = {}
        for name in structure.inputs:
            self.value(name)
        self.tensors = {self.value(name): tensor for name, tensor in structure.constants.items()}
        self.slots: dict[int, Cut] = {}

    @property
    def count(self) -> int:
        """Return the number of registers so far."""
        return len(self._numbers)

    def value(self, key: Hashable) -> int:
        """Return the register of a value, by its name, or of a slot or constant."""
        return self._numbers.setdefault(key, len(self._numbers))

    def role(self, source: CallRole, layout: torch.Tensor, step: int, accesses: Sequence[Sequence[Access]]) -> int:
        """Return the register of a slot or constant that a call takes.

        Args:
            source: The call and the role.
            layout: Fake tensor of the input.
            step: Number of the step.
            accesses: Slot traffic of the step, [call][region].
        """
        role = source.role
        if isinstance(role, StepInput):
            return self._constant(("step", step, layout.device), float(step), layout)
        number = self.starts[source.call] + role.region
        region = self.structure.regions[number]
        access = accesses[source.call][role.region]
        match role:
            case CoefficientInput():
                return self._constant((access.coefficients, layout.device), access.coefficients, layout)
            case RandomInput():
                drawn = random_scores(step, number, len(layout))
                return self._constant(("random", step, number, len(layout)), drawn, layout)
            case TrackInput():
                return self._slot((number, role.cut, role.what), Cut.like(role.what, layout))
            case IndexInput():
                key = self.sharing.key(number, region, role.cut, layout.shape[1])
                return self._slot(("index", *key), Cut.like("index", layout))
            case SlotInput():
                place = access.places[-1 if role.age is None else role.age]
                return self._slot(("slot", number, role.cut, place), region.cuts[role.cut])

    def _constant(self, key: Hashable, value: object, layout: torch.Tensor) -> int:
        register = self.value(key)
        if register not in self.tensors:
            # A tensor born in inference mode could not be used outside of it.
            with torch.inference_mode(False):
                self.tensors[register] = torch.as_tensor(value, dtype=torch.float32).to(layout.device)
        return register

    def _slot(self, key: Hashable, cut: Cut) -> int:
        register = self.value(key)
        self.slots.setdefault(register, cut)
        return register
