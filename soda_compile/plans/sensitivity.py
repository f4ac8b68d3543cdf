"""Sensitivity: the change of each region's output between steps, measured once per model and guidance.

This is the table of offline fine-grained sensitivity (SODA, arXiv 2603.07057), held per operator: what it costs to
reuse a value, what it costs to forecast it, and, if that was measured, what it costs to prune tokens. The tables are
those of one schedule; ``plans.derived`` reads those of another from them.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from soda_compile.errors import SensitivityError
from soda_compile.plans import sensitivity_file
from soda_compile.plans.actions import PRUNE_RATES
from soda_compile.plans.interval_errors import ARRAYS as INTERVAL_ARRAYS
from soda_compile.plans.interval_errors import IntervalErrors, merge_intervals
from soda_compile.plans.notebook import picture_or_text
from soda_compile.plans.operators import OPERATORS
from soda_compile.plans.over_samples import OverSamples
from soda_compile.plans.sensitivity_info import METRICS, PRUNE_OPERATORS, Metric, SensitivityInfo
from soda_compile.storage.files import named_errors, write_atomic
from soda_compile.storage.json_reader import read_json

__all__ = ["METRICS", "PRUNE_OPERATORS", "Metric", "Sensitivity", "SensitivityInfo", "merge"]

_OPERATORS = {operator.name: operator for operator in OPERATORS}
_NINE_IN_TEN = 1.2816  # standard deviations above the mean that nine in ten normally distributed numbers stay below
_SUMMED = ("generations", "samples", "seeds")
_FREE_TO_DIFFER = ("versions", "notes", "noise_levels")


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")

    info: SensitivityInfo
    total_flops: float


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Mean and variance of the errors, per metric and operator, under keys such as "residual.forecast1".

    Operators are those of OPERATORS by name and PRUNE_OPERATORS, "prune.drift" and so on for the scores of tokens.
    With T steps, R regions and W = `info.max_interval`, entry [t, r, ...] is the error at step t of region r:

    - reuse tables are [T, R, W], index n-1: the value kept at step t-n is used;
    - forecast tables are [T, R, W, W], index [n-1, N-1]: the values kept at t-n, t-n-N, ... (order + 1 of them);
    - prune tables are [T, R, W, 7], index [n-1, i]: the share PRUNE_RATES[i] of the tokens, those of lowest score,
      keeps the value of step t-n, and the others are fresh. Where a region has several token groups, only the longest
      is pruned, as by the action ``prune(rate)``.

    NaN stands where an entry is undefined. Tables may be left out, but a table is in both dicts or in neither.

    Attributes:
        info: what was measured.
        mean: key -> float32 table, the mean over samples.
        variance: key -> float32 table, the variance over samples (divided by their number).
        step_weights: [T] float64, how far an output error at a step moves the sample; ones when unknown.
        region_flops: [R] float64, FLOPs that reusing a region removes from one call.
        total_flops: FLOPs of one full call.
        region_prune_flops: [R, 7] float64, FLOPs that pruning a region at each of PRUNE_RATES removes from one call;
            0 where it cannot be pruned. There if, and only if, there are prune tables.
        intervals: errors of simulated intervals, if these were measured by ``simulate``.

    Raises:
        SensitivityError: an array's name, shape, dtype or value does not fit.
    """

    info: SensitivityInfo
    mean: Mapping[str, NDArray[np.float32]]
    variance: Mapping[str, NDArray[np.float32]]
    step_weights: NDArray[np.float64]
    region_flops: NDArray[np.float64]
    total_flops: float
    region_prune_flops: NDArray[np.float64] | None = None
    intervals: IntervalErrors | None = None

    def __post_init__(self) -> None:
        steps, regions, width = self.info.steps, len(self.info.regions), self.info.max_interval
        if not self.mean or set(self.mean) != set(self.variance):
            raise SensitivityError(
                f"tables of the mean {sorted(self.mean)} and variance {sorted(self.variance)} differ"
            )
        for name, array in self.arrays().items():
            operator = _OPERATORS.get(name.split(".", 2)[2])
            axes = (width, len(PRUNE_RATES)) if operator is None else operator.shape(width)
            self._check_array(name, array, (steps, regions, *axes), np.float32)
        object.__setattr__(self, "total_flops", float(self.total_flops))
        self._check_array("step_weights", self.step_weights, (steps,), np.float64)
        self._check_array("region_flops", self.region_flops, (regions,), np.float64)
        for name, values in (("step_weights", self.step_weights), ("region_flops", self.region_flops)):
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise SensitivityError(f"{name} must be finite and not negative; got {values}")
        removed = float(self.region_flops.sum())
        if not (0 < self.total_flops < math.inf and removed <= self.total_flops * (1 + 1e-6)):
            raise SensitivityError(
                f"total_flops is {self.total_flops} and the regions remove {removed} in one call; "
                "it must be finite, positive and no less than what they remove"
            )
        self._check_prune_flops()
        if (own := self.intervals) is not None and (own.squares.shape[1] != steps or own.width > width):
            raise SensitivityError(
                f"errors of intervals are of {own.squares.shape[1]} steps to age {own.width}, "
                f"the sensitivity of {steps} to age {width}"
            )

    def _check_prune_flops(self) -> None:
        removed = self.region_prune_flops
        if (removed is not None) != bool(self.prune_scores):
            raise SensitivityError(
                f"region_prune_flops is {'missing' if removed is None else 'given'}, but the scores by which pruning "
                f"was measured are {list(self.prune_scores)}; give both or neither"
            )
        if removed is None:
            return
        self._check_array("region_prune_flops", removed, (len(self.info.regions), len(PRUNE_RATES)), np.float64)
        wrong = ~((removed >= 0) & (removed <= self.total_flops))  # may exceed region_flops: regions can be nested
        if wrong.any():
            region, rate = np.argwhere(wrong)[0]
            raise SensitivityError(
                f"region_prune_flops is {removed[region, rate]} for {self.info.regions[region]} at rate "
                f"{PRUNE_RATES[rate]}; it must lie between 0 and total_flops, {self.total_flops}"
            )

    @property
    def prune_scores(self) -> tuple[str, ...]:
        """The scores by which pruning was measured."""
        operators = {key.partition(".")[2] for key in self.mean}
        return tuple(name.removeprefix("prune.") for name in PRUNE_OPERATORS if name in operators)

    @staticmethod
    def _check_array(name: str, array: NDArray[Any], shape: tuple[int, ...], dtype: type) -> None:
        if array.shape != shape or array.dtype != dtype:
            raise SensitivityError(f"array {name!r} is {array.dtype} {array.shape}; expected {np.dtype(dtype)} {shape}")

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return all tables under names such as "mean.residual.reuse".

        Raises:
            SensitivityError: a key is not a metric and an operator.
        """
        names = {f"{metric}.{operator}" for metric in METRICS for operator in (*_OPERATORS, *PRUNE_OPERATORS)}
        if unknown := sorted(set(self.mean) - names):
            raise SensitivityError(f"table {unknown[0]!r} is not known; tables are {sorted(names)}")
        tables = {"mean": self.mean, "variance": self.variance}
        return {f"{kind}.{key}": table for kind, group in tables.items() for key, table in group.items()}

    def table(self, metric: str, operator: str) -> NDArray[np.float32]:
        """Return the mean errors of `operator` under `metric`; see the class for the shape.

        Raises:
            SensitivityError: it was not measured.
        """
        if (table := self.mean.get(f"{metric}.{operator}")) is None:
            score = operator.removeprefix("prune.")
            way_out = f"; calibrate with prune_scores=[{score!r}]" if operator in PRUNE_OPERATORS else ""
            raise SensitivityError(
                f"there is no table for metric {metric!r} and operator {operator!r}; "
                f"measured are {', '.join(sorted(self.mean))}{way_out}"
            )
        return table

    def table_over(self, over_samples: OverSamples, metric: str, operator: str) -> NDArray[np.float32]:
        """Return what counts of the errors of samples: of the worst about what a normal distribution has.

        Raises:
            SensitivityError: it was not measured.
        """
        mean = self.table(metric, operator)
        if over_samples == "mean":
            return mean
        return (mean + _NINE_IN_TEN * np.sqrt(self.variance[f"{metric}.{operator}"])).astype(np.float32)

    def error(
        self,
        metric: str,
        operator: str,
        step: int,
        region: str,
        age: int,
        spacing: int = 1,
        rate: float = PRUNE_RATES[0],
    ) -> float:
        """Return one mean error; NaN where it is undefined or outside what was measured.

        Args:
            metric: one of METRICS.
            operator: name of one of OPERATORS, or one of PRUNE_OPERATORS.
            step: the step that uses the value.
            region: region name.
            age: n, steps since the region last computed.
            spacing: N, steps between the kept values; only forecasts have it.
            rate: share of the tokens that keep the old value, one of PRUNE_RATES; only pruning has it.
        """
        table = self.table(metric, operator)[step, self.info.regions.index(region)]
        ages = (age, spacing) if operator in _OPERATORS and _OPERATORS[operator].order else (age,)
        if not all(1 <= value <= self.info.max_interval for value in ages):
            return math.nan
        rates = (PRUNE_RATES.index(rate),) if operator in PRUNE_OPERATORS else ()
        return float(table[(*(value - 1 for value in ages), *rates)])

    def __repr__(self) -> str:
        info = self.info
        sampler = f" of {info.scheduler}" if info.scheduler else ""
        operators = sorted({key.partition(".")[2] for key in self.mean})
        return (
            f"<Sensitivity of {len(info.regions)} regions at {info.steps} steps{sampler}, to age {info.max_interval}, "
            f"over {info.samples} samples: {', '.join(operators)}>"
        )

    def _repr_html_(self) -> str:
        """Return a map of the errors as a picture, for notebooks."""
        key = "residual.forecast1" if "residual.forecast1" in self.mean else sorted(self.mean)[0]
        metric, _, operator = key.partition(".")

        def draw() -> bytes:
            from soda_compile.plans.sensitivity_figure import sensitivity_png

            return sensitivity_png(self, metric, operator)

        return picture_or_text(draw, repr(self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file atomically.

        Raises:
            OSError: the file cannot be written.
        """
        header = {"info": asdict(self.info), "total_flops": self.total_flops}
        single: dict[str, NDArray[Any]] = {"step_weights": self.step_weights, "region_flops": self.region_flops}
        if self.region_prune_flops is not None:
            single["region_prune_flops"] = self.region_prune_flops
        if self.intervals is not None:
            single |= self.intervals.arrays()
        write_atomic(path, sensitivity_file.encode(header, {**self.arrays(), **single}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Sensitivity":
        """Read a file that `save` wrote.

        Raises:
            SensitivityError: missing, truncated, damaged or of another format; the message has the path and reason.
        """
        with named_errors(path, SensitivityError, "sensitivity data"):
            return cls._from_parts(*sensitivity_file.decode(Path(path).read_bytes()))

    @classmethod
    def _from_parts(cls, header: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> "Sensitivity":
        mean = {name[5:]: array for name, array in arrays.items() if name.startswith("mean.")}
        variance = {name[9:]: array for name, array in arrays.items() if name.startswith("variance.")}
        others = {name for name in arrays if not name.startswith(("mean.", "variance."))}
        if others - {"region_prune_flops", *INTERVAL_ARRAYS} != {"step_weights", "region_flops"}:
            raise SensitivityError(f"an entry is missing or unknown; it holds {sorted(others)}")
        about = read_json(_Header, json.dumps(header), SensitivityError, "calibrate again")
        single = (arrays["step_weights"], arrays["region_flops"], about.total_flops, arrays.get("region_prune_flops"))
        return cls(about.info, mean, variance, *single, IntervalErrors.from_arrays(arrays))


def merge(a: Sensitivity, b: Sensitivity) -> Sensitivity:
    """Combine two measurements of the same thing with different seeds, as if they had been one.

    Exact up to float32 rounding: mean and variance are pooled over samples (Chan, Golub, LeVeque 1979). An entry
    that is NaN in either stays NaN.

    Raises:
        SensitivityError: something differs that must agree, or a seed was used in both.
    """
    _check_mergeable(a, b)
    samples = a.info.samples + b.info.samples
    share_a, share_b = a.info.samples / samples, b.info.samples / samples
    mean, variance = {}, {}
    for key in a.mean:
        mean_a, mean_b, variance_a, variance_b = (
            table.astype(np.float64) for table in (a.mean[key], b.mean[key], a.variance[key], b.variance[key])
        )
        between = share_a * share_b * (mean_b - mean_a) ** 2
        mean[key] = (share_a * mean_a + share_b * mean_b).astype(np.float32)
        variance[key] = (share_a * variance_a + share_b * variance_b + between).astype(np.float32)
    info = replace(
        a.info,
        generations=a.info.generations + b.info.generations,
        samples=samples,
        seeds=a.info.seeds + b.info.seeds,
        noise_levels=a.info.noise_levels or b.info.noise_levels,  # older files have none
        versions=_join(a.info.versions, b.info.versions),
        notes=_join(a.info.notes, b.info.notes),
    )
    intervals = merge_intervals(a.intervals, b.intervals)
    return replace(a, info=info, mean=mean, variance=variance, intervals=intervals)


def _check_mergeable(a: Sensitivity, b: Sensitivity) -> None:
    names = [entry.name for entry in fields(SensitivityInfo) if entry.name not in _SUMMED + _FREE_TO_DIFFER]
    pairs: dict[str, tuple[Any, Any]] = {name: (getattr(a.info, name), getattr(b.info, name)) for name in names}
    pairs["tables"] = sorted(a.mean), sorted(b.mean)
    for name, (left, right) in pairs.items():
        if left != right:
            raise SensitivityError(f"cannot merge: {name} is {left!r} in one and {right!r} in the other")
    levels = [each.info.noise_levels for each in (a, b) if each.info.noise_levels is not None]
    if len(levels) == 2 and not np.allclose(levels[0], levels[1], rtol=0, atol=1e-6):
        raise SensitivityError(f"cannot merge: noise_levels is {levels[0]} in one and {levels[1]} in the other")
    numbers = ("step_weights", "region_flops", "total_flops", *(("region_prune_flops",) if a.prune_scores else ()))
    for name in numbers:
        if not np.allclose(getattr(a, name), getattr(b, name), rtol=1e-6, atol=0):
            raise SensitivityError(f"cannot merge: {name} differs: {getattr(a, name)} and {getattr(b, name)}")
    if shared := sorted(set(a.info.seeds) & set(b.info.seeds)):
        raise SensitivityError(f"cannot merge: the seeds {shared} were used in both; measure with other seeds")


def _join(a: dict[str, str], b: dict[str, str]) -> dict[str, str]:
    """Keep both values where they differ."""
    both = {key: f"{a[key]}; {b[key]}" for key in a.keys() & b.keys() if a[key] != b[key]}
    return {**a, **b, **both}
