"""The operator that serves a stale region at a step, and its error there."""

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from soda_compile.errors import OptionError
from soda_compile.plans.actions import DEFAULT_ACTIONS, STALE, Action
from soda_compile.plans.operators import OPERATORS
from soda_compile.plans.over_samples import OverSamples
from soda_compile.plans.sensitivity import METRICS, Sensitivity

OPERATOR_CHOICES = (*(operator.name for operator in OPERATORS), "auto")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StaleErrors:
    """The error of the operator that will run, for every stale region.

    An operator needs history; see `level`. Where that is missing, the next lower order takes its place. "auto" takes,
    per step and region, the operator with the smallest measured error among those with enough history.

    The tables assume equally spaced history, so the error of a higher order is that for the last spacing; the weights
    used at run time are the exact ones for the anchors' true positions.

    Attributes:
        menu: the operators' actions, by order, up to the highest allowed; reuse comes first.
        tables: for each of them [step, region, age-1, spacing-1] float64; the spacing axis has one more entry than
            was measured, NaN except for reuse, which ignores the spacing.
        auto: choose by measured error; otherwise the highest order with enough history.
    """

    menu: tuple[Action, ...]
    tables: tuple[Floats, ...]
    auto: bool

    @classmethod
    def read(
        cls, sensitivity: Sensitivity, operator: str, objective: str, over_samples: OverSamples = "mean"
    ) -> "StaleErrors":
        """Take the tables that `operator` needs, under the metric `objective`; "auto" offers what was measured.

        Raises:
            OptionError: the operator or the objective is not known.
            SensitivityError: a table that is needed was not measured.
        """
        if operator not in OPERATOR_CHOICES:
            raise OptionError(f"operator {operator!r} is not known; use one of {', '.join(OPERATOR_CHOICES)}")
        if objective not in METRICS:
            raise OptionError(f"objective {objective!r} is not known; use one of {', '.join(METRICS)}")
        if over_samples not in get_args(OverSamples):
            choices = ", ".join(get_args(OverSamples))
            raise OptionError(f"over_samples {over_samples!r} is not known; use one of {choices}")
        menu = STALE[: OPERATOR_CHOICES.index(operator) + 1]
        if auto := operator == "auto":
            measured = [action for action in DEFAULT_ACTIONS[2:] if f"{objective}.{action}" in sensitivity.mean]
            menu = (STALE[0], *measured)
        tables = (sensitivity.table_over(over_samples, objective, str(action)) for action in menu)
        reuse, *forecasts = (table.astype(np.float64) for table in tables)
        width = sensitivity.info.max_interval
        padding = ((0, 0), (0, 0), (0, 0), (0, 1))
        padded = (np.pad(table, padding, constant_values=np.nan) for table in forecasts)
        return cls(menu, (np.broadcast_to(reuse[..., None], (*reuse.shape, width + 1)), *padded), auto)

    @property
    def width(self) -> int:
        """The largest age in steps that was measured."""
        return int(self.tables[0].shape[2])

    def up_to(self, order: int) -> "StaleErrors":
        """Return the same with forecasts of at most this order."""
        count = sum(action.order <= order for action in self.menu)
        return StaleErrors(self.menu[:count], self.tables[:count], self.auto)

    def level(self, anchor: NDArray[np.int64] | int, spacing: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Return the highest order whose history lies in the run, whatever came before the last two anchors.

        Order k reads k + 1 anchors, and its error is measured for the points `anchor - j * spacing`, j up to k, so
        these must lie in the run. Anchors lie at most W + 1 apart, so there are k + 1 of them if the anchor before
        comes more than (k - 2) * (W + 1) steps after the first.

        Args:
            anchor: the last anchor step.
            spacing: its distance to the anchor before; 0 where there is none.
        """
        anchor, spacing = np.asarray(anchor), np.asarray(spacing)
        earlier = anchor - spacing
        enough = [
            (spacing > 0) & (earlier >= (order - 1) * spacing) & (earlier > (order - 2) * (self.width + 1))
            for order in range(1, len(OPERATORS))
        ]
        return np.asarray(np.sum(enough, axis=0))

    def candidates(self, level: int) -> tuple[int, ...]:
        """Return the places in the menu to choose from where the history allows orders up to `level`."""
        fits = tuple(index for index, action in enumerate(self.menu) if action.order <= level)
        return fits if self.auto else fits[-1:]

    def runs(self, index: int, anchor: NDArray[np.int64] | int, spacing: NDArray[np.int64] | int) -> NDArray[np.bool_]:
        """Return where the operator at this place in the menu may be chosen, with the arguments of `level`."""
        levels = [level for level in range(len(OPERATORS)) if index in self.candidates(level)]
        return np.isin(self.level(anchor, spacing), levels)

    def summed(self, level: int) -> Floats:
        """Sum over regions of the chosen operator's error, [step, age-1, spacing-1]; NaN where one is not measured."""
        best = self.tables[self.candidates(level)[0]]
        for index in self.candidates(level)[1:]:
            best = np.fmin(best, self.tables[index])
        return np.asarray(best.sum(axis=1), dtype=np.float64)

    def actions(self, step: int, anchor: int, spacing: int) -> tuple[Action, ...]:
        """Return what each region does at the stale `step`; `spacing` is 0 when there is no anchor before `anchor`."""
        regions = int(self.tables[0].shape[1])
        candidates = self.candidates(int(self.level(anchor, spacing)))
        age = step - anchor
        if len(candidates) == 1 or age > self.width:
            return (self.menu[candidates[0]],) * regions
        column = min(max(spacing, 1), self.width + 1) - 1
        errors = np.stack([self.tables[index][step, :, age - 1, column] for index in candidates])
        chosen = np.where(np.isnan(errors), np.inf, errors).argmin(axis=0)
        return tuple(self.menu[candidates[index]] for index in chosen)
