"""Allocation of a register to every value, slot and per-step constant of a program."""

from collections.abc import Hashable, Sequence

import torch

from soda_compile.compiler.index_sharing import IndexSharing
from soda_compile.compiler.schedule import Access
from soda_compile.compiler.variants import CallRole
from soda_compile.ir.roles import Size, Slot
from soda_compile.ir.structure import Cut, Structure
from soda_compile.plans.pruning import random_scores


class Registers:
    """Registers by name or key: inputs first, then constants; slots and per-step constants as they are met.

    Attributes:
        tensors: Constants and coefficients, by register.
        slots: Layouts of slots, by register.
        slot_keys: What each slot keeps, by register.
        sizes: Sizes that differ between calls, by register.
        weights: Registers of fitted weights, by step and order, or ``OUTPUT``; each set has one of its own.
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
        self.slot_keys: dict[int, Hashable] = {}
        self.sizes: dict[int, Size] = {}
        self.weights: dict[tuple[int, int], int] = {}

    @property
    def count(self) -> int:
        """Return the number of registers so far."""
        return len(self._numbers)

    def value(self, key: Hashable) -> int:
        """Return the register of a value, by its name, or of a slot or constant."""
        return self._numbers.setdefault(key, len(self._numbers))

    def size(self, size: Size) -> int:
        """Return the register of a size."""
        register = self.value(size)
        self.sizes[register] = size
        return register

    def role(self, source: CallRole, layout: torch.Tensor, step: int, accesses: Sequence[Sequence[Access]]) -> int:
        """Return the register of a slot or constant that a call takes.

        Args:
            source: The call and the role.
            layout: Fake tensor of the input.
            step: Number of the step.
            accesses: Slot traffic of the step, [call][region].
        """
        role, number = source.role, self.starts[source.call] + source.role.region
        access = accesses[source.call][role.region]
        if isinstance(role, Slot):
            return self._slot(role, number, access, layout)
        match role.kind:
            case "coefficients" if access.fitted is not None:
                place = (step, access.fitted)
                self.weights[place] = self._constant(("weights", *place), access.coefficients, layout)
                return self.weights[place]
            case "coefficients":
                return self._constant(access.coefficients, access.coefficients, layout)
            case "random":
                drawn = random_scores(step, number, len(layout))
                return self._constant(("random", step, number, len(layout)), drawn, layout)
            case "number":
                return self._constant(("number", step), float(step), layout)

    def _slot(self, role: Slot, number: int, access: Access, layout: torch.Tensor) -> int:
        key: Hashable
        region = self.structure.regions[number]
        match role.kind:
            case "cut" | "scale":
                key = (role.kind, number, role.cut, access.places[-1 if role.access == "write" else role.age])
            case "index":
                key = (role.kind, *self.sharing.key(number, region, role.cut, layout.shape[1]))
            case _:
                key = (role.kind, number, role.cut)
        register = self.value(key)
        self.slot_keys[register] = key
        cut = region.cuts[role.cut] if role.kind == "cut" else Cut.like(role.kind, layout)
        self.slots.setdefault(register, cut.in_dtype(layout.dtype))  # that of a cut, unless it is rounded
        return register

    def _constant(self, key: Hashable, value: object, layout: torch.Tensor) -> int:
        register = self.value((key, layout.device))
        if register not in self.tensors:
            # A tensor born in inference mode could not be used outside of it.
            with torch.inference_mode(False):
                self.tensors[register] = torch.as_tensor(value, dtype=torch.float32).to(layout.device)
        return register
