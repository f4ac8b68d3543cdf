"""What generations did: steps and regions by action, calls without the plan and why, compilations, memory."""

import logging
import threading
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from soda_compile.runtime.current import Outside
from soda_compile.runtime.drift import Drift, Reading
from soda_compile.runtime.misses import Miss
from soda_compile.runtime.per_model import PerModel
from soda_compile.runtime.slots import Budget

if TYPE_CHECKING:
    from soda_compile.runtime.generation import Generation

log = logging.getLogger(__name__)

LISTED = 32  # generations that are listed one by one

RegionCounts = tuple[tuple[str, int], ...]
"""The regions of a denoiser call by what they do: kinds of action with their numbers."""


@dataclass(eq=False)
class Tally:
    """Counts of one generation, or of all of a model.

    Attributes:
        planned: Denoiser calls that followed the plan, by what their regions did.
        misses: Calls that ran without the plan, by kind.
        guarded: Calls that computed everything because the guard had tripped.
        drift: How far forecasts were off at anchors, as far as that has been read.
    """

    planned: dict[RegionCounts, int] = field(default_factory=dict)
    misses: Counter[str] = field(default_factory=Counter)
    guarded: int = 0
    drift: Drift = field(default_factory=Drift)

    @property
    def calls(self) -> int:
        """Return the number of denoiser calls that followed the plan."""
        return sum(self.planned.values())

    @property
    def regions(self) -> Counter[str]:
        """Return the regions in these calls by the kind of action."""
        total: Counter[str] = Counter()
        for regions, calls in list(self.planned.items()):
            for kind, count in regions:
                total[kind] += count * calls
        return total

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as plain values."""
        return {
            "calls": self.calls,
            "regions": dict(self.regions),
            "misses": dict(self.misses),
            "guarded": self.guarded,
            "drift": self.drift.as_dict(),
        }

    def __str__(self) -> str:
        regions = ", ".join(f"{count} {kind}" for kind, count in self.regions.items())
        misses = f"; {self.misses.total()} calls without the plan" if self.misses else ""
        guarded = f"; {self.guarded} guarded calls" if self.guarded else ""
        return f"{self.calls} calls" + (f": {regions}" if regions else "") + misses + guarded


@dataclass(eq=False)
class ModelStatistics:
    """Statistics of one model.

    Attributes:
        total: Of all generations.
        generations: The newest generations by number, the newest last.
        compilations: Graphs that were compiled.
        compile_seconds: Time that took.
        reasons: The newest message of each kind of miss, and what else was said.
        budget: Memory of slots.
    """

    total: Tally = field(default_factory=Tally)
    generations: deque[tuple[int, Tally]] = field(default_factory=lambda: deque(maxlen=LISTED))
    compilations: int = 0
    compile_seconds: float = 0.0
    reasons: dict[str, str] = field(default_factory=dict)
    budget: Budget = field(init=False)
    _unread: list[tuple[Tally, Reading]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.budget = Budget(self.say)

    def count(self, generation: "Generation", regions: RegionCounts) -> None:
        """Add a call of a generation that followed the plan."""
        if not generation.counted:
            return
        with self._lock:
            self._list(generation)
            for tally in (generation.tally.planned, self.total.planned):
                tally[regions] = tally.get(regions, 0) + 1

    def drifted(self, generation: "Generation", reading: Reading) -> None:
        """Take the error of a forecast at an anchor, and count those that have arrived meanwhile."""
        with self._lock:
            self._unread.append((generation.tally, reading))
            self._read(wait=False)

    def _read(self, *, wait: bool) -> None:
        unread, self._unread = self._unread, []
        for tally, reading in unread:
            if wait or reading.arrived:
                tally.drift.add(reading)
                self.total.drift.add(reading)
            else:
                self._unread.append((tally, reading))

    def guarded(self, generation: "Generation", step: int, ratio: float, guard: float) -> None:
        """Count a call that computed everything because of the guard; warn at the first."""
        with self._lock:
            self._list(generation)
            for tally in (generation.tally, self.total):
                tally.guarded += 1
        self.say(
            "guard",
            f"at step {step} forecasts were {ratio:.1f} times as far off as in the calibration, more than "
            f"guard={guard:g}: steps compute everything until an anchor shows less",
        )

    def miss(self, generation: "Generation | Outside | None", miss: Miss) -> None:
        """Count a call without the plan, of a generation or of none; warn at the first of its kind."""
        if self.note(generation, miss):
            log.warning("a denoiser call runs without its plan (%s): %s", miss.kind, miss)

    def note(self, generation: "Generation | Outside | None", miss: Miss) -> bool:
        """Count a call without the plan, as ``miss`` does; return whether it is the first of its kind."""
        with self._lock:
            if generation is not None and not isinstance(generation, Outside):
                self._list(generation)
                generation.tally.misses[miss.kind] += 1
            self.total.misses[miss.kind] += 1
            first = miss.kind not in self.reasons
            self.reasons[miss.kind] = str(miss)
        return first

    def say(self, kind: str, message: str) -> None:
        """Warn once of something about this model."""
        with self._lock:
            first = kind not in self.reasons
            self.reasons[kind] = message
        if first:
            log.warning("%s", message)

    def compiled(self, seconds: float) -> None:
        """Count a graph that was compiled."""
        with self._lock:
            self.compilations += 1
            self.compile_seconds += seconds

    def _list(self, generation: "Generation") -> None:
        if not generation.tally.planned and not generation.tally.misses:
            self.generations.append((generation.trajectory, generation.tally))

    def as_dict(self) -> dict[str, Any]:
        """Return all statistics as plain values; errors that are on their way from a device are waited for."""
        with self._lock:
            self._read(wait=True)
        return {
            **self.total.as_dict(),
            "reasons": dict(self.reasons),
            "slot_bytes": self.budget.used_bytes,
            "slot_bytes_peak": self.budget.peak_bytes,
            "compilations": self.compilations,
            "compile_seconds": self.compile_seconds,
            "generations": {number: tally.as_dict() for number, tally in list(self.generations)},
        }


_statistics = PerModel(ModelStatistics)
statistics_of = _statistics.of
"""Return the statistics of the model that owns a parameter."""


def recorded(parameters: Iterable[torch.Tensor]) -> list[ModelStatistics]:
    """Return the statistics that hang on these parameters."""
    return [found for parameter in parameters if (found := _statistics.find(parameter)) is not None]
