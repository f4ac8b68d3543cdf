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
        calls: Calls so far: in the trajectory for an automatic clock, in the step otherwise.
    """

    calls_per_step: int
    calls: int = 0
    _trajectory: int = 0
    _step: int = 0
    _named: Counter[str | None] = field(default_factory=Counter)  # calls in the step by name

    def place(self, clock: Clock) -> CountedCall:
        """Return the place of the call that comes now, without counting it."""
        same = clock.trajectory == self._trajectory
        if clock.automatic:
            step, number = divmod(self.calls if same else 0, self.calls_per_step)
            return CountedCall(clock.trajectory, step, Branch(None, number), number)
        same = same and clock.step == self._step
        branch = Branch(clock.branch, self._named[clock.branch] if same else 0)
        return CountedCall(clock.trajectory, clock.step, branch, self.calls if same else 0)

    def count(self, clock: Clock, placed: CountedCall | None = None) -> CountedCall:
        """Count the call that comes now, and return its place, which may be known already."""
        call = placed or self.place(clock)
        if call.trajectory != self._trajectory or (not clock.automatic and call.step != self._step):
            self.calls = 0
            self._named.clear()
        self._trajectory, self._step = call.trajectory, call.step
        self._named[call.branch.name] += 1
        self.calls += 1
        return call
