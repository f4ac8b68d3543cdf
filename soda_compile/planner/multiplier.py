"""The Lagrange multiplier: the edge of the convex hull of (cost, error) on which a goal lies."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """One solution.

    Attributes:
        cost: what it costs.
        error: its summed error.
        value: the solution itself.
    """

    cost: float
    error: float
    value: T


@dataclass(frozen=True)
class Edge(Generic[T]):
    """Two neighbouring solutions on the lower convex hull; equal ones where the goal lies beyond the hull's end.

    Attributes:
        cheap: the one with the smaller cost.
        accurate: the one with the smaller error.
    """

    cheap: Outcome[T]
    accurate: Outcome[T]

    @property
    def multiplier(self) -> float:
        """Error saved for each unit of cost, going from the cheap one to the accurate one."""
        paid = self.accurate.cost - self.cheap.cost
        return (self.cheap.error - self.accurate.error) / paid if paid > 0 else 0.0

    def bound(self, budget: float) -> float:
        """Return a bound: no solution within `budget` has a smaller error (weak duality)."""
        return max(0.0, self.cheap.error - self.multiplier * max(0.0, budget - self.cheap.cost))


def find_edge(solve: Callable[[float, float], Outcome[T]], is_cheap: Callable[[Outcome[Any]], bool]) -> Edge[T]:
    """Walk the hull by secants: exact, and in a few rounds, where bisection only comes near.

    Each round asks for the best solution under the multiplier that makes both ends of the edge equally good. If that
    finds nothing better, no solution lies below the edge.

    Args:
        solve: the solution that minimises error_weight * error + cost_weight * cost; costs and errors should be of
            the order of 1, because a tiny weight decides between equals at the ends of the hull.
        is_cheap: whether a solution belongs to the cheap side of the goal, such as cost <= budget; true for all
            solutions that are cheap enough.

    Returns:
        The edge with one end on each side. Both ends are the same solution if the goal has only one side.
    """
    cheap, accurate = solve(_NEGLIGIBLE, 1.0), solve(1.0, _NEGLIGIBLE)
    if not is_cheap(cheap):
        return Edge(cheap, cheap)
    if is_cheap(accurate):
        return Edge(accurate, accurate)
    while True:
        multiplier = Edge(cheap, accurate).multiplier
        middle = solve(1.0, multiplier)
        reached, least = (outcome.error + multiplier * outcome.cost for outcome in (cheap, middle))
        if multiplier <= 0 or least >= reached - _NEGLIGIBLE * abs(reached):
            return Edge(cheap, accurate)
        if is_cheap(middle):
            cheap = middle
        else:
            accurate = middle
