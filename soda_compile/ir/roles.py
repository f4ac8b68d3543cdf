"""Roles: what the runtime passes for an added input of a rewritten graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SlotInput:
    """An input of a rewritten block graph that takes a slot: one stored copy of a cut.

    Attributes:
        region: Index of the region in the block.
        cut: Index of the cut in the region.
        age: 0 for the newest stored value, 1 for the one before; None for the one to overwrite.
    """

    region: int
    cut: int
    age: int | None


@dataclass(frozen=True)
class CoefficientInput:
    """An input of a rewritten block graph that takes a forecast's coefficients, float32 [order + 1], newest first."""

    region: int
    order: int


@dataclass(frozen=True)
class TrackInput:
    """An input that takes what is known of the tokens of a cut since each was last computed.

    Attributes:
        region: Index of the region in the block.
        cut: Index of the cut in the region.
        what: ``input`` for the carry as it was then, in its shape and dtype; ``step`` for the step it was at,
            float32 [batch, tokens].
    """

    region: int
    cut: int
    what: Literal["input", "step"]


@dataclass(frozen=True)
class IndexInput:
    """An input that takes the slot for the tokens chosen for a cut, int64 [batch, k], shared by several regions."""

    region: int
    cut: int


@dataclass(frozen=True)
class StepInput:
    """An input that takes the number of the step, float32 []."""


@dataclass(frozen=True)
class RandomInput:
    """An input that takes random scores for the tokens of a cut, float32 [tokens], drawn for the step."""

    region: int
    cut: int


Role = SlotInput | CoefficientInput | TrackInput | IndexInput | StepInput | RandomInput
