"""What one region can do at one step."""

from dataclasses import dataclass
from typing import Literal

from soda_compile.errors import PlanError

Kind = Literal["compute", "reuse", "forecast"]


@dataclass(frozen=True)
class Action:
    """What one region does at one step.

    Attributes:
        kind: "compute" (run the module and keep its output), "reuse" (take the kept output as it is) or "forecast"
            (extrapolate the last `order + 1` computed outputs by the polynomial of degree `order` through them).
        order: 0 for compute and reuse, 1 or 2 for forecast.
    """

    kind: Kind
    order: int = 0

    def __post_init__(self) -> None:
        orders = {"compute": (0,), "reuse": (0,), "forecast": (1, 2)}
        if self.kind not in orders:
            raise PlanError(f"action kind {self.kind!r} is not known; use one of {', '.join(orders)}")
        if isinstance(self.order, bool) or self.order not in orders[self.kind]:
            raise PlanError(f"action {self.kind} has order {self.order!r}; it can be one of {orders[self.kind]}")

    @property
    def symbol(self) -> str:
        """The one character that stands for it in grids and files: C, r, 1 or 2."""
        return str(self.order) if self.kind == "forecast" else {"compute": "C", "reuse": "r"}[self.kind]

    @property
    def history(self) -> int:
        """How many earlier computed outputs it reads."""
        return 0 if self.kind == "compute" else self.order + 1

    def __str__(self) -> str:
        return f"{self.kind}{self.order or ''}"


COMPUTE = Action("compute")
REUSE = Action("reuse")
FORECAST1 = Action("forecast", 1)
FORECAST2 = Action("forecast", 2)
ACTIONS = (COMPUTE, REUSE, FORECAST1, FORECAST2)
