"""Roles: what the runtime passes for an added input of a rewritten graph, or does with an added result."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Slot:
    """Memory that keeps a value of a region from step to step.

    Attributes:
        kind: ``cut`` for a stored copy of a cut; ``scale`` for the scales of its rows where it is rounded, float32 in
            its shape but for 1 at the end; ``input`` for the carry as it was when each token was last computed,
            in its shape and dtype; ``step`` for the step each token was last computed at, float32 [batch, tokens];
            ``index`` for the tokens chosen for a cut, int64 [batch, k], which several regions share.
        region: Index of the region in the block.
        cut: Index of the cut in the region.
        access: ``read`` where the stored value is read, and maybe replaced in place; ``write`` for the copy of a cut
            whose value is not read before it is overwritten.
        age: Of several copies of a cut that are read: 0 for the newest, 1 for the one before.
    """

    kind: Literal["cut", "scale", "input", "step", "index"]
    region: int
    cut: int
    access: Literal["read", "write"] = "read"
    age: int = 0


@dataclass(frozen=True)
class StepConstant:
    """A tensor that follows from the plan and the step alone.

    Attributes:
        kind: ``coefficients`` for a forecast's coefficients, float32 [order + 1], newest first; ``random`` for random
            scores of the tokens of a cut, float32 [tokens]; ``number`` for the step itself, float32 [].
        region: Index of the region in the block; 0 for the number of the step, which is that of all regions.
        cut: Index of the cut in the region, for random scores.
    """

    kind: Literal["coefficients", "random", "number"]
    region: int = 0
    cut: int = 0


Role = Slot | StepConstant


@dataclass(frozen=True)
class Size:
    """A size that differs between calls of one graph, or a number that follows from such sizes.

    Attributes:
        expression: How it follows from them, a sympy expression.
    """

    expression: Any
