"""Which operator serves a stale region at a step, and what it costs there."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from soda_compile.errors import OptionError
from soda_compile.plans.actions import FORECAST1, FORECAST2, REUSE, Action
from soda_compile.plans.sensitivity import METRICS, OPERATORS, Sensitivity

OperatorChoice = Literal["reuse", "forecast1", "forecast2", "auto"]
OPERATOR_CHOICES: tuple[str, ...] = get_args(OperatorChoice)
Floats = NDArray[np.float64]

_ACTIONS: tuple[Action, ...] = (REUSE, FORECAST1, FORECAST2)


@dataclass(frozen=True)
class StaleErrors:
    """The error of the operator that will run, for every stale region.

    An operator needs history: with `anchor` the last anchor step and `spacing` the distance to the anchor before,
    forecast1 needs an anchor before (spacing > 0), forecast2 also the point `anchor - 2 * spacing` inside the run.
    Where that is missing, the next lower order takes its place. "auto" takes, per step and region, the operator with
    the smallest measured error among those with enough history.

    The tables assume equally spaced history, so the error of forecast2 is that for the last spacing; the weights used
    at run time are the exact ones for the anchors' true positions.

    Attributes:
        tables: [order][step, region, age-1, spacing-1] float64, orders up to the highest allowed; the spacing axis
            has one more entry than was measured, NaN except for order 0, which ignores the spacing.
        auto: choose by measured error; otherwise the highest order with enough history.
    """

    tables: tuple[Floats, ...]
    auto: bool

    @classmethod
    def read(cls, sensitivity: Sensitivity, operator: str, objective: str) -> "StaleErrors":
        """Takes the tables that `operator` needs, under the metric `objective`.

        Raises:
            OptionError: the operator or the objective is not known.
            SensitivityError: a table that is needed was not measured.
        """
        if operator not in OPERATOR_CHOICES:
            raise OptionError(f"operator {operator!r} is not known; use one of {', '.join(OPERATOR_CHOICES)}")
        if objective not in METRICS:
            raise OptionError(f"objective {objective!r} is not known; use one of {', '.join(METRICS)}")
        auto = operator == "auto"
        names = OPERATORS if auto else OPERATORS[: OPERATOR_CHOICES.index(operator) + 1]
        reuse, *forecasts = (sensitivity.table(objective, name).astype(np.float64) for name in names)
        width = sensitivity.info.max_interval
        padding = ((0, 0), (0, 0), (0, 0), (0, 1))
        padded = (np.pad(table, padding, constant_values=np.nan) for table in forecasts)
        return cls((np.broadcast_to(reuse[..., None], (*reuse.shape, width + 1)), *padded), auto)

    @property
    def width(self) -> int:
        """The largest age in steps that was measured."""
        return int(self.tables[0].shape[2])

    def candidates(self, level: int) -> tuple[int, ...]:
        """The orders to choose from where the history allows orders up to `level`."""
        highest = min(level, len(self.tables) - 1)
        return tuple(range(highest + 1)) if self.auto else (highest,)

    def summed(self, level: int) -> Floats:
        """Sum over regions of the chosen operator's error, [step, age-1, spacing-1]; NaN where one is not measured."""
        best = self.tables[self.candidates(level)[0]]
        for order in self.candidates(level)[1:]:
            best = np.fmin(best, self.tables[order])
        return np.asarray(best.sum(axis=1), dtype=np.float64)

    def actions(self, step: int, anchor: int, spacing: int) -> tuple[Action, ...]:
        """What each region does at the stale `step`; `spacing` is 0 when there is no anchor before `anchor`."""
        regions = int(self.tables[0].shape[1])
        candidates = self.candidates(int(history_level(anchor, spacing)))
        age = step - anchor
        if len(candidates) == 1 or age > self.width:
            return (_ACTIONS[candidates[0]],) * regions
        index = min(max(spacing, 1), self.width + 1) - 1
        errors = np.stack([self.tables[order][step, :, age - 1, index] for order in candidates])
        chosen = np.where(np.isnan(errors), np.inf, errors).argmin(axis=0)
        return tuple(_ACTIONS[candidates[index]] for index in chosen)


def history_level(anchor: NDArray[np.int64] | int, spacing: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """The highest order whose history lies in the run: 0 without a spacing, else 1, or 2 from step 2 * spacing on."""
    anchor, spacing = np.asarray(anchor), np.asarray(spacing)
    return np.where(spacing == 0, 0, np.where(anchor >= 2 * spacing, 2, 1))
