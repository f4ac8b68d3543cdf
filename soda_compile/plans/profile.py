"""The time of each action of each region on one device: the data that ``soda_compile.profile`` measures."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soda_compile.errors import ProfileError
from soda_compile.plans import profile_file
from soda_compile.plans.actions import ACTIONS, COMPUTE, PRUNE_RATES, REUSE, Action, prune
from soda_compile.plans.plan_file import SlotDtype
from soda_compile.storage.files import named_errors, write_atomic

PROFILED: tuple[Action, ...] = (*ACTIONS, *(prune(rate) for rate in PRUNE_RATES))
"""The actions that can be measured: the columns of ``Profile.cost_us``."""


@dataclass(frozen=True, eq=False)
class Profile:
    """Time of one call of a denoiser, split over its regions.

    A call takes ``base_us`` plus the sum over regions of the cost of what each does.

    Attributes:
        fingerprint: hash of the model structure.
        regions: region names, in the order of the rows.
        device: name of the device.
        key: hash of the graphs, shapes, dtypes, device, versions and settings that the times belong to.
        full_us: time of a call that computes everything and keeps nothing, the reference of a speedup.
        base_us: time of a call that reuses everything.
        cost_us: [R, A] float64, what each action of PROFILED adds to ``base_us``; NaN where it was not measured,
            0 for reuse.
        memory_bytes: [R] float64, size of one kept copy of each region's cuts.
        stack_bytes: size of one kept copy of what all regions add together; None where the model cannot keep that.
        rounded_bytes: [R] float64 by what is rounded to: ``memory_bytes`` of a copy that is rounded, with its scales.
        rounded_stack_bytes: ``stack_bytes`` likewise.
        score: how pruned regions picked their tokens; None where pruning was not measured.
        spread: interquartile range of the time of a full call over its median.
        versions: versions of the packages used.

    Raises:
        ProfileError: an array's shape or a value does not fit.
    """

    fingerprint: str
    regions: tuple[str, ...]
    device: str
    key: str
    full_us: float
    base_us: float
    cost_us: NDArray[np.float64]
    memory_bytes: NDArray[np.float64]
    stack_bytes: float | None = None
    rounded_bytes: Mapping[SlotDtype, NDArray[np.float64]] = field(default_factory=dict)
    rounded_stack_bytes: Mapping[SlotDtype, float] = field(default_factory=dict)
    score: str | None = None
    spread: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = {"cost_us": (len(self.regions), len(PROFILED)), "memory_bytes": (len(self.regions),)}
        for name, shape in shapes.items():
            array: NDArray[Any] = getattr(self, name)
            if array.shape != shape or array.dtype != np.float64:
                raise ProfileError(f"{name} is {array.dtype} {array.shape}; expected float64 {shape}")
        costs = self.column(COMPUTE), self.column(REUSE), self.memory_bytes
        if not all(np.isfinite(values).all() for values in costs) or (np.nan_to_num(self.cost_us) < 0).any():
            raise ProfileError(
                "cost_us must be known for compute and reuse, and no cost or memory negative or infinite; measure again"
            )
        if not (0 < self.base_us < math.inf and 0 < self.full_us < math.inf):
            raise ProfileError(f"base_us is {self.base_us} and full_us {self.full_us}; both must be positive")

    def column(self, action: Action) -> NDArray[np.float64]:
        """Return [R], the costs of one action; NaN where it was not measured."""
        return np.asarray(self.cost_us[:, PROFILED.index(action)])

    def __repr__(self) -> str:
        return (
            f"<Profile of {len(self.regions)} regions on {self.device}: a full call takes {self.full_us / 1000:.3g} ms "
            f"(spread {self.spread:.1%}), all reused {self.base_us / 1000:.3g} ms, "
            f"pruning {f'by {self.score}' if self.score else 'not measured'}>"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON to `path` atomically.

        Raises:
            OSError: the file cannot be written.
        """
        write_atomic(path, self.to_json().encode())

    def to_json(self) -> str:
        """Return the JSON text of a file."""
        entries = {name: self._entry(number) for number, name in enumerate(self.regions)}
        own = {name: getattr(self, name) for name in profile_file.SCALARS}
        return profile_file.encode({**own, "actions": [str(action) for action in PROFILED], "regions": entries})

    def _entry(self, region: int) -> dict[str, Any]:
        rounded = {name: float(sizes[region]) for name, sizes in self.rounded_bytes.items()}
        own = {"cost_us": _nulls(self.cost_us[region]), "memory_bytes": float(self.memory_bytes[region])}
        return {**own, "rounded_bytes": rounded} if rounded else own

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Profile":
        """Read a file that `save` wrote; actions that it does not hold were not measured.

        Raises:
            ProfileError: missing, damaged, of another version, or with values that do not fit; names path and reason.
        """
        with named_errors(path, ProfileError, "profile"):
            data = profile_file.parse(Path(path).read_bytes())
            names = [str(action) for action in PROFILED]
            if len(set(data.actions) & set(names)) != len(data.actions):
                raise ProfileError("it holds other actions than this version knows; measure again")
            rows = [entry.cost_us for entry in data.regions.values()]
            if any(len(row) != len(data.actions) for row in rows):
                raise ProfileError(f"each region must have {len(data.actions)} costs")
            cost_us = np.full((len(rows), len(names)), math.nan)
            for column, name in enumerate(data.actions):
                cost_us[:, names.index(name)] = [math.nan if row[column] is None else row[column] for row in rows]
            return cls(
                regions=tuple(data.regions),
                cost_us=cost_us,
                memory_bytes=np.array([entry.memory_bytes for entry in data.regions.values()], dtype=np.float64),
                rounded_bytes=_by_dtype([entry.rounded_bytes for entry in data.regions.values()]),
                **{name: getattr(data, name) for name in profile_file.SCALARS},
            )


def _by_dtype(entries: Sequence[Mapping[SlotDtype, float]]) -> dict[SlotDtype, NDArray[np.float64]]:
    names = list(entries[0]) if entries else []
    if any(set(entry) != set(names) for entry in entries):
        raise ProfileError("rounded_bytes must have the same keys for all regions; measure again")
    return {name: np.array([entry[name] for entry in entries], dtype=np.float64) for name in names}


def _nulls(row: NDArray[np.float64]) -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in row]
