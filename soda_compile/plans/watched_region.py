"""The region whose forecasts are compared with what is computed at anchors, and what the calibration expects there."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from soda_compile.errors import PlanError
from soda_compile.plans.actions import COMPUTE, Action
from soda_compile.plans.reads import reads


@dataclass(frozen=True)
class WatchedRegion:
    """A region, and the errors of its forecasts at anchors.

    Attributes:
        region: its name.
        errors: by anchor step, the mean relative error in the calibration of what the step before it does (reuse or a
            forecast), had it been done at the anchor too; sorted, a mapping is accepted too.

    Raises:
        PlanError: an error is negative or not finite.
    """

    region: str
    errors: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        errors = tuple(sorted((step, float(error)) for step, error in dict(self.errors).items()))
        object.__setattr__(self, "errors", errors)
        bad = [(step, error) for step, error in errors if not (math.isfinite(error) and error >= 0)]
        if bad:
            raise PlanError(f"watched region {self.region!r}, step {bad[0][0]}: the expected error is {bad[0][1]}")

    def check(self, regions: Sequence[str], actions: Sequence[Sequence[Action]], anchors: Iterable[int]) -> None:
        """Check that the region of a plan has forecasts to compare at these steps.

        Raises:
            PlanError: Naming the region or the step.
        """
        if self.region not in regions:
            raise PlanError(f"watched region {self.region!r} is none of the plan's regions")
        possible = forecasts_at_anchors(actions[regions.index(self.region)], anchors)
        wrong = [step for step, _ in self.errors if step not in possible]
        if wrong:
            raise PlanError(
                f"an error is expected of watched region {self.region!r} at step {wrong[0]}, where the plan has no "
                "forecast to compare; make the plan anew, or leave the watched region out"
            )

    def moved(self, by: int, steps: Iterable[int]) -> "WatchedRegion | None":
        """Return the same at some of the steps, for a plan whose steps count from elsewhere; None if none is left."""
        kept = set(steps)
        errors = tuple((step + by, error) for step, error in self.errors if step in kept)
        return WatchedRegion(self.region, errors) if errors else None


def forecasts_at_anchors(row: Sequence[Action], anchors: Iterable[int]) -> dict[int, tuple[int, ...]]:
    """Return by anchor the steps whose values a region's forecast there would read, newest first.

    The forecast is what the step before does, done at the anchor too. Anchors are left out where that step computes or
    prunes, where a value is one that pruning mixed, and where nothing later reads what the anchor computes, so that it
    is not kept.
    """
    sources = reads(row)
    found = {}
    for step in anchors:
        if step == 0 or row[step - 1].kind not in ("reuse", "forecast"):
            continue
        read = sources[step - 1]
        kept = any(step in later for later in sources[step + 1 :])
        if kept and all(row[source] == COMPUTE for source in read):
            found[step] = tuple(read)
    return found


def to_json(watched: WatchedRegion) -> dict[str, object]:
    """Return the form that a plan file has."""
    return {"region": watched.region, "errors": {str(step): error for step, error in watched.errors}}


def from_json(region: str, errors: Mapping[str, float]) -> WatchedRegion:
    """Read what ``to_json`` gave.

    Raises:
        PlanError: A step is not a number, or an error is impossible.
    """
    for step in errors:
        if not step.isdecimal():
            raise PlanError(f"watched region {region!r} has an error for step {step!r}; steps are numbers")
    return WatchedRegion(region, tuple((int(step), error) for step, error in errors.items()))
