"""Random valid plans, for fuzzing."""

from collections.abc import Sequence

import numpy as np

from soda_compile.plans.actions import COMPUTE, DEFAULT_ACTIONS, Action, prune
from soda_compile.plans.plan import Plan
from soda_compile.plans.pruning import Pruning


def random_plan(
    seed: int | np.random.Generator,
    regions: Sequence[str],
    steps: int,
    *,
    fingerprint: str = "",
    compute: float = 0.4,
    pruning: Pruning | None = None,
    rates: Sequence[float] = (0.25, 0.5, 0.75),
) -> Plan:
    """Return a valid plan that draws every region's action at every step at random, for tests and fuzzing.

    Args:
        seed: a seed, or the generator to draw from.
        regions: region names.
        steps: number of steps.
        fingerprint: hash of the model structure.
        compute: probability of computing; the rest is shared equally by the default operators that have enough history.
        pruning: prune too, and pick tokens like this.
        rates: for prunes.
    """
    rng = np.random.default_rng(seed)
    operators = (*DEFAULT_ACTIONS[1:], *(prune(rate) for rate in rates if pruning))
    rows: list[tuple[Action, ...]] = []
    for _ in regions:
        row = [COMPUTE]
        while len(row) < steps:
            allowed = [action for action in operators if action.history <= row.count(COMPUTE)]
            row.append(COMPUTE if rng.random() < compute else allowed[rng.integers(len(allowed))])
        rows.append(tuple(row))
    return Plan(fingerprint, tuple(regions), tuple(rows), pruning=pruning)
