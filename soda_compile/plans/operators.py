"""The operators that stand in for computing: the one table that all menus, tables of errors and pictures follow."""

from collections.abc import Sequence
from dataclasses import dataclass

from soda_compile.plans.coefficients import lagrange


@dataclass(frozen=True)
class Operator:
    """A way to predict a region's output from its last computed outputs.

    Attributes:
        name: its name in options, plans and profiles; its table of errors under a metric is "metric.name".
        symbol: the one character that stands for it in grids and plan files.
        colour: its colour in figures.
        order: degree of the polynomial through the values that it reads, and its place in `OPERATORS`.
        default: whether menus offer it where nobody asks for it; measured it is in any case.
    """

    name: str
    symbol: str
    colour: str
    order: int
    default: bool = True

    @property
    def kind(self) -> str:
        """The kind of action: "reuse" or "forecast"."""
        return "forecast" if self.order else "reuse"

    @property
    def history(self) -> int:
        """Number of past values that it reads."""
        return self.order + 1

    def ages(self, age: int, spacing: int) -> tuple[int, ...]:
        """Return the ages in steps of the values that it reads, newest first, where they are `spacing` apart."""
        return tuple(age + spacing * index for index in range(self.history))

    def spacings(self, width: int) -> int:
        """Return the number of spacings that its table of errors distinguishes if up to `width` are measured."""
        return width if self.order else 1

    def shape(self, width: int) -> tuple[int, ...]:
        """Return the axes of its table of errors behind step and region: age and, if it depends on it, spacing."""
        return (width, width) if self.order else (width,)

    def coefficients(self, points: Sequence[int], at: int) -> tuple[float, ...]:
        """Return the weights of the values of steps `points` in the prediction for step `at`; they sum to 1."""
        return lagrange(points, at)


OPERATORS = (
    Operator("reuse", symbol="r", colour="#f2e3c6", order=0),
    Operator("forecast1", symbol="1", colour="#f0b35a", order=1),
    Operator("forecast2", symbol="2", colour="#d9793b", order=2),
    Operator("forecast3", symbol="3", colour="#a8481f", order=3, default=False),
)
"""By order, from 0 without a gap: where history is short, the operator before takes an operator's place."""
