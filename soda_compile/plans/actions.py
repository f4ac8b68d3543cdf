"""Actions: what one region can do at one step."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from soda_compile.errors import PlanError
from soda_compile.plans.operators import OPERATORS

Kind = Literal["compute", "reuse", "forecast", "prune"]

# Rates lie on a small grid, so that few variants exist and every action has a symbol of its own.
PRUNE_RATES = tuple(eighths / 8 for eighths in range(1, 8))
SIDE_RATES = (0.0, 0.25, 0.5, 0.75)
_ORDERS = {
    "compute": (0,),
    **{each.kind: tuple(other.order for other in OPERATORS if other.kind == each.kind) for each in OPERATORS},
    "prune": (0,),
}
_PRUNE_SYMBOLS = "abcdefghijklmnopqstuvwxyzABD"


@dataclass(frozen=True, order=True)
class Action:
    """The choice for one region at one step.

    Attributes:
        kind: "compute" (run the module and keep its output), "reuse" (take the kept output as it is), "forecast"
            (extrapolate the last `order + 1` computed outputs by the polynomial of degree `order` through them) or
            "prune" (compute some tokens and take the others from the kept output).
        order: for forecast that of one of OPERATORS, 0 otherwise.
        rate: for prune, the share of tokens that keep their old value, one of PRUNE_RATES; 0 otherwise. In a region
            of several token groups (joint attention) it is the rate of the longest.
        side_rate: for prune, the rate of the other token groups of the region, one of SIDE_RATES.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    kind: Kind
    order: int = 0
    rate: float = 0.0
    side_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in _ORDERS:
            raise PlanError(f"action kind {self.kind!r} is not known; use one of {', '.join(_ORDERS)}")
        if isinstance(self.order, bool) or self.order not in _ORDERS[self.kind]:
            raise PlanError(f"action {self.kind} has order {self.order!r}; it can be one of {_ORDERS[self.kind]}")
        allowed = (PRUNE_RATES, SIDE_RATES) if self.kind == "prune" else ((0.0,), (0.0,))
        for name, values in zip(("rate", "side_rate"), allowed, strict=True):
            if isinstance(value := getattr(self, name), bool) or value not in values:
                raise PlanError(f"action {self.kind} has {name} {value!r}; it can be one of {values}")
            object.__setattr__(self, name, float(value))

    @property
    def symbol(self) -> str:
        """The one character that stands for it in grids and files; prunes have a letter for each pair of rates."""
        if self.kind == "prune":
            return _PRUNE_SYMBOLS[SIDE_RATES.index(self.side_rate) * len(PRUNE_RATES) + PRUNE_RATES.index(self.rate)]
        return "C" if self.kind == "compute" else OPERATORS[self.order].symbol

    @property
    def history(self) -> int:
        """Number of earlier computed outputs that it reads."""
        return 0 if self.kind == "compute" else OPERATORS[self.order].history

    def __str__(self) -> str:
        if self.kind == "prune":
            side = f"/{self.side_rate:.3g}" if self.side_rate else ""
            return f"prune {self.rate:.3g}{side}"
        return self.kind if self.kind == "compute" else OPERATORS[self.order].name


def prune(rate: float, side_rate: float = 0.0) -> Action:
    """Return the action that keeps a share `rate` of the tokens as they are and computes the others."""
    return Action("prune", rate=rate, side_rate=side_rate)


COMPUTE = Action("compute")
STALE = tuple(Action(operator.kind, operator.order) for operator in OPERATORS)  # type: ignore[arg-type]
"""The actions of the operators, by order."""
REUSE, FORECAST1, FORECAST2, *_ = STALE
ACTIONS = (COMPUTE, *STALE)
"""The actions that treat all tokens alike."""
DEFAULT_ACTIONS = (COMPUTE, *(action for action in STALE if OPERATORS[action.order].default))
"""Those that menus offer where nobody asks for others."""
