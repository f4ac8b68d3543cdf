"""The clock of a generation: its trajectory and step, kept on the host."""

import itertools
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

from soda_compile.errors import TrajectoryError
from soda_compile.torch_internals.wrapped_tensors import flatten_inputs

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
        restarts: Whether a branch may come in late or leave out steps; it then computes everything when it comes.
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


@dataclass(frozen=True, eq=False)
class _Active:
    """A clock and the models it belongs to, by the identity of their parameters and buffers."""

    clock: Clock
    parameters: frozenset[int] = field(repr=False)


_active: ContextVar[tuple[_Active, ...]] = ContextVar("soda_compile_trajectories", default=())


@contextmanager
def trajectory(
    model: torch.nn.Module, *, manual: bool = False, timesteps: Iterable[float] | torch.Tensor | None = None
) -> Iterator[Clock]:
    """Open one generation of a hand-written sampling loop.

    Every call of ``model`` inside, compiled with backend "soda", belongs to this trajectory, in this thread. The
    generation starts clean, whatever happened before. ::

        with soda_compile.trajectory(model):
            for t in timesteps:
                x = scheduler.step(model(x, t), t, x).prev_sample

    Args:
        model: The denoiser, compiled or not: its parameters and buffers tell which compiled calls are meant.
        manual: By default each step has as many denoiser calls as the plan says (``calls_per_step``, one unless
            guidance makes a second one), and these advance the step. With ``manual=True`` the step ends where the
            loop calls ``advance()`` on the yielded clock; the calls within a step are branches of guidance.
        timesteps: Those that the loop goes through. On a GPU, where the denoiser's timestep cannot be
            read without waiting, they let option ``conditioning="trajectory"`` know that they are the same again.

    Yields:
        The clock.
    """
    clock = Clock(automatic=not manual)
    if isinstance(timesteps, torch.Tensor):
        timesteps = timesteps.tolist()  # at once, from a device
    clock.begin(schedule=None if timesteps is None else tuple(map(float, timesteps)))
    entry = _Active(clock, frozenset(map(id, flatten_inputs([*model.parameters(), *model.buffers()]))))
    token = _active.set((entry, *_active.get()))
    try:
        yield clock
    finally:
        _active.reset(token)


def clock_for(parameter: torch.Tensor) -> Clock | None:
    """Return the innermost open trajectory of the model that owns ``parameter``, in this thread."""
    for entry in _active.get():
        if id(parameter) in entry.parameters:
            return entry.clock
    return None
