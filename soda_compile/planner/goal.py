"""Goals of planning: the numbers to reach, and their meaning in units of cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from soda_compile.errors import OptionError, PlanError
from soda_compile.planner.costs import Costs

SHORTEST_REACH = 10
REACH = 2  # of the mean distance: the first computed steps of close plans are further apart than the last


@dataclass(frozen=True)
class Goal:
    """Numbers that a plan must reach. Which of them a strategy takes together is said there.

    A subclass may have other numbers that bound the cost: it names them in ``budgets`` and says in ``budget`` what
    they mean.

    Attributes:
        budgets: Names of the numbers that bound the cost.
        anchors: Number of steps that compute every region; step 0 is always one.
        speedup: Cost of computing everything / cost of the plan, to be reached with the least error. Costs are
            measured times with a profile, FLOPs without.
        latency_ms: Measured time of all denoiser calls of a generation, to be kept with the least error.
        max_error: Largest summed error, in the unit of ``Plan.predicted_error``, to be kept at the least cost.
        memory_bytes: Most that kept values may take, for one branch of guidance; the order of forecasts is lowered
            until they fit. What the scores of pruning keep comes on top.
    """

    budgets: ClassVar[tuple[str, ...]] = ("speedup", "latency_ms")
    anchors: int | None = None
    speedup: float | None = None
    latency_ms: float | None = None
    max_error: float | None = None
    memory_bytes: int | None = None

    def check(self, steps: int, one_of: Sequence[str], optional: Sequence[str] = ()) -> None:
        """Check the numbers, and that they do not contradict each other.

        Args:
            steps: Steps of a generation.
            one_of: Numbers of which exactly one decides; "budget" stands for all that bound the cost.
            optional: Numbers that may be asked for on top, beside ``memory_bytes``.

        Raises:
            OptionError: If too many or too few are asked for.
            PlanError: If a number is impossible.
        """
        values = self.numbers()
        deciding = [name for kind in one_of for name in (self.budgets if kind == "budget" else (kind,))]
        excess = [name for name in values if name not in (*deciding, *optional, "memory_bytes")]
        if excess or sum(name in deciding for name in values) != 1:
            listed = ", ".join(f"{name}={values.get(name)}" for name in (*deciding, *excess))
            raise OptionError(f"give exactly one of {' and '.join(deciding)}; got {listed}")
        if self.anchors is not None and self.anchors not in range(1, steps + 1):
            raise PlanError(
                f"anchors is {self.anchors}; with {steps} steps it must be a whole number from 1 to {steps}"
            )
        for name, value in values.items():
            least = 1 if name == "speedup" else 0
            if not (math.isfinite(value) and value >= least):
                raise PlanError(f"{name} is {value}; it must be a finite number, at least {least}")

    def numbers(self) -> dict[str, float]:
        """Return the numbers that are asked for, by name."""
        names = ("anchors", *self.budgets, "max_error", "memory_bytes")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def reach(self, steps: int | None = None) -> int:
        """Return the longest time, in steps, that values may be kept in plans for it: what is to be measured.

        It is ten, or twice the mean distance of computed steps where that is more. With less, plans of few computed
        steps come out all but evenly spaced, and are further off than they need be.

        Args:
            steps: Steps of a generation; None where they are not known.
        """
        distance = self.speedup or 0.0
        if self.anchors and steps:
            distance = steps / self.anchors
        longest = math.ceil(REACH * distance) if math.isfinite(distance) else 0
        return max(SHORTEST_REACH, longest if steps is None else min(longest, steps - 1))

    def budget(self, costs: Costs, steps: int, calls_per_step: int) -> float | None:
        """Return the largest cost of one branch of guidance of a generation; None without a bound on cost.

        Raises:
            OptionError: If a time is asked for, but the costs are FLOPs.
        """
        if self.latency_ms is not None:
            if costs.unit != "us":
                raise OptionError(
                    "latency_ms needs measured costs; pass profile=soda_compile.profile(model, inputs) too, or ask for "
                    "a speedup"
                )
            return self.latency_ms * 1000 / calls_per_step * (1 + 1e-9)
        return None if self.speedup is None else steps * costs.full / self.speedup * (1 + 1e-9)

    def out_of_reach(self, costs: Costs, steps: int, calls_per_step: int, least: float, how: str) -> PlanError:
        """Return the error for a budget below the ``least`` cost, which is reached in the way ``how``."""
        if self.latency_ms is not None:
            least_ms = least * calls_per_step / 1000
            return PlanError(f"latency_ms={self.latency_ms:g} is out of reach: the least is {least_ms:.3f} ms, {how}")
        most = steps * costs.full / least
        if self.speedup is not None:
            what = "measured time" if costs.unit == "us" else "FLOPs"
            return PlanError(f"a speedup of {self.speedup:g} by {what} is out of reach: the most is {most:.3f}, {how}")
        return PlanError(f"{self} is out of reach: the least cost is {least:.4g} {costs.unit}, {how}")
