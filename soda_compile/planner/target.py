"""What a plan is asked to reach, and what that means in units of cost."""

import math
from dataclasses import dataclass

from soda_compile.errors import OptionError, PlanError
from soda_compile.planner.costs import Costs


@dataclass(frozen=True)
class Target:
    """What the caller asked for; see `plan`.

    Attributes:
        anchors: number of anchor steps.
        speedup: cost of computing everything / cost of the plan.
        latency_ms: measured time of all denoiser calls of a generation.
        max_error: the largest summed error.
    """

    anchors: int | None = None
    speedup: float | None = None
    latency_ms: float | None = None
    max_error: float | None = None

    def check(self, steps: int, anchors_alone: bool) -> None:
        """Checks the numbers, and that they do not contradict each other.

        Args:
            steps: steps of a generation.
            anchors_alone: whether the number of anchors decides all, so that it excludes the other three.

        Raises:
            OptionError: too many or too few are given.
            PlanError: a number is impossible.
        """
        names = ("anchors",) * anchors_alone + ("speedup", "latency_ms", "max_error")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            shown = ", ".join(f"{name}={getattr(self, name)}" for name in names)
            raise OptionError(f"give exactly one of {' and '.join(names)}; got {shown}")
        if self.anchors is not None and self.anchors not in range(1, steps + 1):
            raise PlanError(
                f"anchors is {self.anchors}; with {steps} steps it must be a whole number from 1 to {steps}"
            )
        for name, least in (("speedup", 1), ("latency_ms", 0), ("max_error", 0)):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= least):
                raise PlanError(f"{name} is {value}; it must be a finite number, at least {least}")

    def budget(self, costs: Costs, steps: int, calls_per_step: int) -> float | None:
        """The largest cost of one stream of a generation, in the unit of `costs`; None without a bound on cost.

        Raises:
            OptionError: a time is asked for, but the costs are FLOPs.
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
        """The error for a budget below the `least` cost, which is reached in the way `how`."""
        if self.latency_ms is not None:
            least_ms = least * calls_per_step / 1000
            return PlanError(f"latency_ms={self.latency_ms:g} is out of reach: the least is {least_ms:.3f} ms, {how}")
        what = "measured time" if costs.unit == "us" else "FLOPs"
        most = steps * costs.full / least
        return PlanError(f"a speedup of {self.speedup:g} by {what} is out of reach: the most is {most:.3f}, {how}")
