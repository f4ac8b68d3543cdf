"""Gives every value, slot and per-step constant of a program its register."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from soda_compile.compiler.index_sharing import IndexSharing
from soda_compile.compiler.schedule import Access
from soda_compile.compiler.variants import CallRole
from soda_compile.ir.roles import Slot
from soda_compile.ir.structure import Cut, Structure
from soda_compile.plans.pruning import random_scores


@dataclass(frozen=True)
class StepView:
    """One step, which the roles of its calls are resolved against.

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
        self._registers: dict[Hashable, int] = {}
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
        """Return the register of what a call takes or gives at a step; ``layout`` is the fake tensor there."""
        role, number = source.role, self.bounds[source.call][0] + source.role.region
        access = view.accesses[source.call][role.region]
        if isinstance(role, Slot):
            return self._slot(role, number, access, layout)
        match role.kind:
            case "coefficients":
                return self._constant(access.coefficients, access.coefficients, layout)
            case "random":
                drawn = random_scores(view.step, number, len(layout))
                return self._constant(("random", view.step, number, len(layout)), drawn, layout)
            case "number":
                return self._constant(("number", view.step), float(view.step), layout)

    def _slot(self, role: Slot, number: int, access: Access, layout: torch.Tensor) -> int:
        key: Hashable
        region = self.structure.regions[number]
        match role.kind:
            case "cut":
                key = (role.kind, number, role.cut, access.places[-1 if role.access == "write" else role.age])
            case "index":
                key = (role.kind, *self.sharing.key(number, region, role.cut, layout.shape[1]))
            case _:
                key = (role.kind, number, role.cut)
        if key not in self._registers:
            self._registers[key] = self._new()
            self.slots[self._registers[key]] = region.cuts[role.cut] if role.kind == "cut" else _as_cut(role, layout)
        return self._registers[key]

    def _constant(self, key: Hashable, value: object, layout: torch.Tensor) -> int:
        key = (key, layout.device)
        if key not in self._registers:
            self._registers[key] = self._new()
            # A tensor born in inference mode could not be used outside of it.
            with torch.inference_mode(False):
                tensor = torch.as_tensor(value, dtype=torch.float32).to(layout.device)
            self.tensors[self._registers[key]] = tensor
        return self._registers[key]


def _as_cut(role: Slot, layout: torch.Tensor) -> Cut:
    shape, stride = tuple(layout.shape), tuple(layout.stride())
    return Cut(role.kind, shape, stride, layout.dtype, layout.device, layout.nbytes)
