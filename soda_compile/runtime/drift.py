"""The errors of forecasts at anchors, on their way from the device, and what they say of a generation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

LEAST_EXPECTED = 1e-3
"""Smaller errors are taken for this one: they are of the order of rounding in half precision."""


@dataclass(eq=False)
class Reading:
    """The error of the forecast at one anchor of one generation.

    Attributes:
        step: The anchor step.
        expected: The error in the calibration; None where it is not known.
    """

    step: int
    expected: float | None
    _value: torch.Tensor
    _event: torch.cuda.Event | None = None

    @classmethod
    def send(cls, step: int, expected: float | None, error: torch.Tensor) -> "Reading":
        """Let an error set out for the host; nobody waits for the device."""
        if error.device.type != "cuda":
            return cls(step, expected, error)
        value = torch.empty((), dtype=error.dtype, pin_memory=True)
        value.copy_(error, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(error.device))
        return cls(step, expected, value, event)

    @property
    def arrived(self) -> bool:
        """Return whether the error can be read without waiting for a device."""
        return self._value.device.type == "cpu" and (self._event is None or bool(self._event.query()))  # type: ignore[no-untyped-call]

    @property
    def error(self) -> float:
        """Return the relative error; waits for it, and for nothing that the device does after it."""
        if self._event is not None:
            self._event.synchronize()
        return float(self._value)

    @property
    def ratio(self) -> float | None:
        """Return the error over what was expected; waits as ``error`` does."""
        return None if self.expected is None else self.error / max(self.expected, LEAST_EXPECTED)


@dataclass(eq=False)
class Newest:
    """The readings of the newest anchor of a generation, of all its branches of guidance."""

    readings: tuple[Reading, ...] = ()

    def add(self, reading: Reading) -> None:
        """Take a reading; nothing is learnt from one without an expected error."""
        if reading.expected is not None:
            same = tuple(each for each in self.readings if each.step == reading.step)
            self.readings = (*same, reading)

    def exceeding(self, guard: float, step: int) -> float | None:
        """Return the largest ratio before a step if it exceeds the guard, else None; waits for the readings."""
        ratios = [each.ratio for each in self.readings if each.step < step]
        return max((ratio for ratio in ratios if ratio is not None and not ratio <= guard), default=None)


@dataclass(eq=False)
class Drift:
    """The running error at anchors, of one generation or of all of a model.

    Attributes:
        readings: How many were read.
        last: The last error over what was expected; None before one is known.
        worst: The largest of these ratios.
    """

    readings: int = 0
    last: float | None = None
    worst: float | None = None
    _errors: float = 0.0  # summed, as the ratios are
    _ratios: float = 0.0
    _with_ratio: int = 0

    def add(self, reading: Reading) -> None:
        """Count a reading."""
        self.readings += 1
        self._errors += reading.error
        ratio = reading.ratio
        if ratio is not None:
            self.last, self.worst = ratio, ratio if self.worst is None else max(ratio, self.worst)
            self._ratios += ratio
            self._with_ratio += 1

    def as_dict(self) -> dict[str, Any]:
        """Return plain values; None where nothing was read, or nothing is expected."""
        return {
            "readings": self.readings,
            "error": self._errors / self.readings if self.readings else None,
            "ratio": self._ratios / self._with_ratio if self._with_ratio else None,
            "last_ratio": self.last,
            "worst_ratio": self.worst,
        }


def joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return what two of ``Drift.as_dict`` say together; the last is that of the first that has one."""
    counts = one["readings"], other["readings"]
    last, worst = (
        [each[key] for each in (one, other) if each[key] is not None] for key in ("last_ratio", "worst_ratio")
    )

    def mean(key: str) -> float | None:
        known = [(count, each[key]) for count, each in zip(counts, (one, other), strict=True) if each[key] is not None]
        return sum(count * value for count, value in known) / sum(count for count, _ in known) if known else None

    return {
        "readings": sum(counts),
        "error": mean("error"),
        "ratio": mean("ratio"),
        "last_ratio": next(iter(last), None),
        "worst_ratio": max(worst, default=None),
    }
