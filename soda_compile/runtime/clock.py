"""The clock of a generation: its trajectory and step, kept on the host."""

import itertools
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from soda_compile.errors import TrajectoryError

_numbers = itertools.count(1)


@dataclass
class Clock:
    """Count trajectories and steps for the denoisers of one generation.

    Attributes:
        automatic: Whether denoiser calls advance the step. Otherwise ``advance`` does, and all calls in between
            belong to the same step.
        trajectory: Number of the present trajectory, unique in the process; 0 before the first.
        step: Present step, 0 for the first; meaningless for an automatic clock.
        steps: Number of steps of the trajectory, where the owner of the clock knows it.
        schedule: Says which timesteps the trajectory goes through, where the owner knows: equal schedules give
            the denoiser equal timesteps at equal steps.
        branch: Name of the branch of guidance that is called next, such as "cond", where the owner knows it.
        restarts: Whether the owner expects branches that come in late or leave out steps.
    """

    automatic: bool = False
    trajectory: int = 0
    step: int = 0
    steps: int | None = None
    schedule: Hashable = None
    branch: str | None = None
    restarts: bool = False

    def begin(self, steps: int | None = None, schedule: Hashable = None) -> None:
        """Start a new trajectory."""
        self.trajectory = next(_numbers)
        self.step = 0
        self.steps = steps
        self.schedule = schedule

    def advance(self) -> None:
        """End the present step.

        Raises:
            TrajectoryError: If denoiser calls advance this clock.
        """
        if self.automatic:
            raise TrajectoryError(
                "this trajectory advances by itself after each denoiser call; "
                "open it with trajectory(model, manual=True) to call advance()"
            )
        self.step += 1

    @contextmanager
    def calling(self, branch: str) -> Iterator[None]:
        """Name the branch of guidance whose calls come inside."""
        before, self.branch = self.branch, branch
        try:
            yield
        finally:
            self.branch = before
