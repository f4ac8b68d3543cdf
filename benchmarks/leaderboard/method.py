"""A row of the leaderboard: a method, and the settings that are tried for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.leaderboard.subject import Subject
from benchmarks.leaderboard.tuning import Search

Kind = Literal["ours", "rule", "their code", "fewer steps"]


@dataclass(frozen=True, eq=False)
class Method:
    """One method.

    Attributes:
        name: In options and results.
        kind: "rule" is the authors' rule, run by an emulator of ours; "their code" is that itself.
        source: Where it is from.
        searches: Settings for a subject, given the seeds for calibration, each from the dearest to the cheapest.
        needs_calibration: Whether it measures anything before, apart from being tuned.
    """

    name: str
    kind: Kind
    source: str
    searches: Callable[[Subject, Sequence[int]], list[Search]]
    needs_calibration: bool = False
