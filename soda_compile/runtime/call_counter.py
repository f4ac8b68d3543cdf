"""Counts denoiser calls: at which step of the trajectory a call comes, and for which branch of guidance."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from soda_compile.runtime.clock import Clock


class Branch(NamedTuple):
    """A branch of guidance: the name of its calls, where they have one, and a number among those of equal name."""

    name: str | None
    number: int

    def __str__(self) -> str:
        if self.name is None:
            return str(self.number)
        return f"{self.name} {self.number}" if self.number else self.name


class CountedCall(NamedTuple):
    """The place of a call; ``number`` counts the calls of its step that came before."""

    trajectory: int
    step: int
    branch: Branch
    number: int


@dataclass(eq=False)
class CallCounter:
    """Turns a clock and a denoiser call into a step and a branch of guidance.

    A branch keeps its name from step to step, whatever the order of the calls and wherever it joins; calls without a
    name are numbered in each step.

    Attributes:
        calls_per_step: Calls in a step, where no sampler advances the clock.
        steps: Steps after which a new trajectory begins, where there is no clock at all.
    """

    calls_per_step: int
    steps: int = 0
    _own: Clock = field(default_factory=lambda: Clock(automatic=True))
    _trajectory: int = 0
    _step: int = 0
    _calls: int = 0  # in the trajectory for an automatic clock, in the step otherwise
    _named: Counter[str | None] = field(default_factory=Counter)  # calls in the step by name

    def count(self, clock: Clock | None, starts: bool = False) -> CountedCall:
        """Count the call that comes now.

        Args:
            clock: The clock that tells the step, or None to count calls and wrap.
            starts: Whether the call shows that it is one of a first step; without a clock this starts a new
                trajectory, so an interrupted generation does no harm.
        """
        if clock is None:
            clock = self._own
            over = self._calls >= self.steps * self.calls_per_step
            if over or not self._trajectory or (starts and self._calls >= self.calls_per_step):
                clock.begin()
        if clock.trajectory != self._trajectory:
            self._trajectory, self._calls = clock.trajectory, 0
        if clock.automatic:
            step, number = divmod(self._calls, self.calls_per_step)
            branch = Branch(None, number)
        else:
            if clock.step != self._step:
                self._calls = 0
            if not self._calls:
                self._named.clear()
            step, number = clock.step, self._calls
            branch = Branch(clock.branch, self._named[clock.branch])
            self._named[clock.branch] += 1
        self._step = step
        self._calls += 1
        return CountedCall(self._trajectory, step, branch, number)

    def reset(self) -> None:
        """Forget the trajectory: the next call without a clock starts one."""
        self._trajectory = self._calls = 0
