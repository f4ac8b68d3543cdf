"""How much a denoiser's modules change from step to step: whether anything of one step is of use at another."""

import numpy as np

from soda_compile.plans.sensitivity import Sensitivity

TOO_MUCH = 0.5
"""Change above which users are warned. On the digits model the least change is .55, .39, .28, .20 and .14 at 4, 6, 8,
12 and 20 steps, and samples at a speedup of 1.4 are 27, 4.7, 2.4, 1.3 and .8% off (L2, four samples)."""


def least_change(sensitivity: Sensitivity) -> float | None:
    """Return the least error of any step whose modules all give what follows from the steps just before.

    It is relative to what they give (L2), the mean over modules by their FLOPs, by whichever action is best at that
    step: reuse, or a forecast from neighbouring steps. None where no step was measured.
    """
    shares = sensitivity.region_flops / max(sensitivity.region_flops.sum(), np.finfo(float).tiny)
    tables = [table for key, table in sensitivity.mean.items() if key.startswith("relative.") and "prune" not in key]
    errors = [table.reshape(*table.shape[:2], -1)[..., 0] @ shares for table in tables]
    measured = [each[np.isfinite(each)] for each in errors]
    return min((float(each.min()) for each in measured if each.size), default=None)
