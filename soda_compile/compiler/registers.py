"""Gives every value, slot and per-step constant of a program its register."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from soda_compile.compiler.index_sharing import IndexSharing
from soda_compile.compiler.schedule import Access
from soda_compile.compiler.variants import CallRole
from soda_compile.ir.roles import CoefficientInput, IndexInput, RandomInput, SlotInput, StepInput, TrackInput
from soda_compile.ir.structure import Cut, Region, Structure
from soda_compile.plans.pruning import random_scores


@dataclass(frozen=True)
class StepView:
    """What the roles of one step's calls are resolved against.

    Attributes:
        step: Number of the step.
        accesses: Slot traffic, [call][region].
    """

    step: int
    accesses: tuple[tuple[Access, ...], ...]


class Registers:
    """Inputs first, then constants; slots and per-step constants as they are met."""

    def __init__(self, structure: Structure, bounds: Sequence[tuple[int, int]], sharing: IndexSharing) -> None:
        self.structure = structure
        self.bounds = bounds
        self.sharing = sharing
        self.values: dict[str, int] = {}
        self.tensors: dict[int, torch.Tensor] = {}
        self.slots: dict[int, Cut] = {}
        self._known: dict[Hashable, int] = {}
        self.count = 0
        for name in structure.inputs:
            self.values[name] = self._new()
        for name, tensor in structure.constants.items():
            self.values[name] = self._new()
            self.tensors[self.values[name]] = tensor

    def _new(self) -> int:
        self.count += 1
        return self.count - 1

    def value(self, name: str) -> int:
        """The register of a named value."""
        if name not in self.values:
            self.values[name] = self._new()
        return self.values[name]

    def role(self, source: CallRole, layout: torch.Tensor, view: StepView) -> int:
        """The register of a slot or constant that a call takes at a step; ``layout`` is the input's fake tensor."""
        role = source.role
        if isinstance(role, StepInput):
            return self._constant(("step", view.step, layout.device), float(view.step), layout)
        number = self.bounds[source.call][0] + role.region
        region = self.structure.regions[number]
        access = view.accesses[source.call][role.region]
        match role:
            case CoefficientInput():
                return self._constant((access.coefficients, layout.device), access.coefficients, layout)
            case RandomInput():
                drawn = random_scores(view.step, number, len(layout))
                return self._constant(("random", view.step, number, len(layout)), drawn, layout)
            case TrackInput():
                return self._slot((number, role.cut, role.what), role.what, layout)
            case IndexInput():
                key = self.sharing.key(number, region, role.cut, layout.shape[1])
                return self._slot(("index", *key), "index", layout)
            case SlotInput():
                place = access.places[-1 if role.age is None else role.age]
                return self._cut_slot(number, region, role.cut, place)

    def _constant(self, key: Hashable, value: object, layout: torch.Tensor) -> int:
        if key not in self._known:
            self._known[key] = self._new()
            # A tensor born in inference mode could not be used outside of it.
            with torch.inference_mode(False):
                tensor = torch.as_tensor(value, dtype=torch.float32).to(layout.device)
            self.tensors[self._known[key]] = tensor
        return self._known[key]

    def _slot(self, key: Hashable, name: str, layout: torch.Tensor) -> int:
        if key not in self._known:
            self._known[key] = self._new()
            self.slots[self._known[key]] = Cut(
                name,
                tuple(layout.shape),
                tuple(layout.stride()),
                layout.dtype,
                layout.device,
                layout.numel() * layout.element_size(),
            )
        return self._known[key]

    def _cut_slot(self, number: int, region: Region, cut: int, place: int) -> int:
        key = ("slot", number, cut, place)
        if key not in self._known:
            self._known[key] = self._new()
            self.slots[self._known[key]] = region.cuts[cut]
        return self._known[key]
