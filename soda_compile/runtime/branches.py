"""The branches of guidance of one generation under one plan: where each stands, and what it keeps."""

from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from soda_compile.compiler.program import Program
from soda_compile.runtime.call_counter import Branch, CallCounter
from soda_compile.runtime.conditioning_cache import ConditioningCache
from soda_compile.runtime.constant_cache import ConstantCache
from soda_compile.runtime.drift import Newest
from soda_compile.runtime.slots import Slots


class Kept(Protocol):
    """What a branch of guidance keeps."""

    def release(self) -> None:
        """Give its memory back."""


State = TypeVar("State", bound=Kept)


@dataclass(eq=False)
class BranchState:
    """Where one branch of guidance stands.

    Attributes:
        planned: The plan's own program when its slots were taken; another one was compiled anew since.
        start: The plan's step at which it began.
        slots: What it keeps, under the program that runs from ``start`` on.
        conditioning: What conditions its steps, where conditioning is computed ahead.
        constants: What its steps do not change, computed once.
        step: The plan's step that was run last.
    """

    planned: Program
    start: int
    slots: Slots
    conditioning: ConditioningCache
    constants: ConstantCache
    step: int = -1

    def release(self) -> None:
        """Give its slots back, and what was computed ahead."""
        self.slots.release()
        self.constants.release()
        self.conditioning.release()


@dataclass(eq=False)
class Branches(Generic[State]):
    """All branches of guidance of a generation under one plan.

    Attributes:
        calls_per_step: Calls in a step, where they advance the clock.
        counter: Counts the calls.
        states: The branches that keep something.
        newest: How far forecasts were off at the newest anchor.
    """

    calls_per_step: int
    counter: CallCounter = field(init=False)
    states: dict[Branch, State] = field(default_factory=dict)
    newest: Newest = field(default_factory=Newest)

    def __post_init__(self) -> None:
        self.counter = CallCounter(self.calls_per_step)

    def drop(self, branch: Branch) -> None:
        """Give back what a branch keeps."""
        state = self.states.pop(branch, None)
        if state is not None:
            state.release()

    def release(self) -> None:
        """Give back what all branches keep."""
        for branch in list(self.states):
            self.drop(branch)
