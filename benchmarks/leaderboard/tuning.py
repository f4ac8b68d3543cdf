"""Tunes a method for budgets on calibration seeds: the settings that cost at most the budget, and the best of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Setting:
    """One way to run a method.

    Attributes:
        text: What distinguishes it; two settings with one text are the same.
        install: Applies it to a subject.
    """

    text: str
    install: Callable[..., Any]


@dataclass(frozen=True)
class Tried:
    """What a setting did on the calibration seeds: its share of the original's cost, and its mean error."""

    setting: Setting
    cost: float
    error: float


Search = Sequence[Setting]
"""Settings from the dearest to the cheapest, such as rising thresholds."""


@dataclass(eq=False)
class Tuner:
    """Tries settings, each once.

    Attributes:
        evaluate: Runs a setting on the calibration seeds; gives its cost and its error.
        tried: By text.
        failed: Reasons of settings that do not run, by text.
    """

    evaluate: Callable[[Setting], tuple[float, float]]
    tried: dict[str, Tried] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def cost(self, setting: Setting) -> float | None:
        """The cost of a setting; None where it does not run."""
        if setting.text not in self.tried and setting.text not in self.failed:
            try:
                self.tried[setting.text] = Tried(setting, *self.evaluate(setting))
            except Exception as error:
                self.failed[setting.text] = reason(error)
        found = self.tried.get(setting.text)
        return None if found is None else found.cost

    def best(self, searches: Sequence[Search], budget: float) -> Tried | None:
        """Bisect each search for the dearest setting within the budget; of all within it, the one of the least error.

        What was tried for other budgets counts too. Costs need not fall strictly: a setting is taken by its own cost.
        """
        near: int | None = None
        for search in searches:
            near = self._bisect(search, budget, near)
        within = [each for each in self.tried.values() if each.cost <= budget and each.error == each.error]
        return min(within, key=lambda each: each.error, default=None)

    def _bisect(self, search: Search, budget: float, near: int | None) -> int | None:
        """Find the first setting within the budget; return its place from the end, None if there is none.

        Args:
            search: From the dearest to the cheapest.
            budget: A share of the original's cost.
            near: The place that the last search led to: searches of one method end alike, so it is tried first.
        """
        low, high, found = 0, len(search) - 1, None
        guesses = [] if near is None else [len(search) - near, len(search) - near - 1]
        while low <= high:
            guess = guesses.pop(0) if guesses else -1
            middle = guess if low <= guess <= high else (low + high) // 2
            cost = self.cost(search[middle])
            if cost is None:
                break
            if cost <= budget:
                high, found = middle - 1, len(search) - middle
            else:
                low = middle + 1
        return found or near

    def why_none(self) -> str:
        """Why no setting is within a budget."""
        if self.tried:
            return f"its least cost is {min(each.cost for each in self.tried.values()):.3f}"
        return next(iter(self.failed.values()), "it has no setting")


def reason(error: BaseException) -> str:
    """The first line of an error, with its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0][:240] if lines else ""
    return text if isinstance(error, NotImplementedError) else f"{type(error).__name__}: {text}"


def thresholds(make: Callable[[float], Setting], low: float, high: float, count: int = 33) -> list[Setting]:
    """Settings of rising thresholds, evenly spread by ratio."""
    ratio = (high / low) ** (1 / (count - 1))
    return [make(float(f"{low * ratio**index:.4g}")) for index in range(count)]


def counts(make: Callable[[int], Setting], most: int, least: int) -> list[Setting]:
    """Settings of falling numbers of computed steps."""
    return [make(count) for count in range(most, least - 1, -1)]
