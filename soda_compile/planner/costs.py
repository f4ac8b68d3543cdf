"""Costs of actions: measured time where there is a profile, FLOPs otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from soda_compile.errors import PlanError
from soda_compile.planner.stale_errors import Floats
from soda_compile.plans.actions import COMPUTE, PRUNE_RATES, Action, prune
from soda_compile.plans.profile import PROFILED, Profile
from soda_compile.plans.sensitivity import Sensitivity


@dataclass(frozen=True, eq=False)
class Costs:
    """The cost of one call, split over its regions: `base` plus what each region's action adds.

    Attributes:
        unit: "FLOPs" or "us" (microseconds).
        full: cost of a call that computes everything, the reference of a speedup.
        base: cost of a call that reuses everything.
        table: [R, A] float64, what each action of PROFILED adds; infinite where a region cannot do it.
    """

    unit: str
    full: float
    base: float
    table: Floats

    @classmethod
    def read(cls, sensitivity: Sensitivity, profile: Profile | None = None) -> "Costs":
        """Take the profile; what that does not hold follows from FLOPs, at the speed at which the region computes.

        Raises:
            PlanError: the profile is for another model.
        """
        flops = _flops(sensitivity)
        if profile is None:
            total = sensitivity.total_flops
            return cls("FLOPs", total, total - float(sensitivity.region_flops.sum()), flops)
        if (profile.fingerprint, profile.regions) != (sensitivity.info.fingerprint, sensitivity.info.regions):
            raise PlanError(
                f"the profile is for another model (fingerprint {profile.fingerprint}, {len(profile.regions)} regions) "
                f"than the sensitivity (fingerprint {sensitivity.info.fingerprint}, {len(sensitivity.info.regions)} "
                "regions); measure it with soda_compile.profile on the model that was calibrated"
            )
        compute_us = profile.column(COMPUTE)[:, None]
        share = flops / np.maximum(sensitivity.region_flops, 1.0)[:, None]
        cost_us = np.where(np.isnan(profile.cost_us), compute_us * share, profile.cost_us)
        return cls("us", profile.full_us, profile.base_us, np.where(np.isinf(flops), np.inf, cost_us))

    def column(self, action: Action) -> Floats:
        """Return [R], what an action adds for each region; a rate for further token groups is left out."""
        return np.asarray(self.table[:, _column(action)])

    def of(self, actions: Sequence[Sequence[Action]]) -> float:
        """Return the cost of one branch of guidance of a generation; `actions` is indexed [region][step]."""
        steps = len(actions[0])
        if all(action == COMPUTE for row in actions for action in row):
            return steps * self.full  # nothing has to be kept
        columns = np.array([[_column(action) for action in row] for row in actions])
        return steps * self.base + float(np.take_along_axis(self.table, columns, axis=1).sum())


def _column(action: Action) -> int:
    return PROFILED.index(prune(action.rate) if action.kind == "prune" else action)


def _flops(sensitivity: Sensitivity) -> Floats:
    """Return [R, A], the FLOPs that each action adds to those of a call that reuses everything."""
    region = sensitivity.region_flops[:, None]
    table = np.zeros((len(region), len(PROFILED)))
    table[:, [_column(COMPUTE)]] = region
    removed = sensitivity.region_prune_flops
    removed = np.zeros((len(region), len(PRUNE_RATES))) if removed is None else removed
    # Pruning a region can remove more than reusing it: work of a region nested in it.
    left = np.maximum(region - removed, 0.0)
    table[:, [_column(prune(rate)) for rate in PRUNE_RATES]] = np.where(removed > 0, left, np.inf)
    return table
