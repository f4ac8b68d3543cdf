"""The seam to frameworks that host denoisers: what is asked of one, and which one hosts a model.

``Framework`` and ``SamplerHook`` are structural: an implementation imports nothing from here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from soda_compile.capture.forward import Holder
from soda_compile.errors import OptionError, TrajectoryError
from soda_compile.integrations.diffusers.framework import Diffusers
from soda_compile.runtime.clock import Clock


class SamplerHook(Protocol):
    """A pipeline's sampler (its noise scheduler) while it drives a clock.

    The clock's step is an index into the timesteps; setting the timesteps begins a trajectory.
    """

    clock: Clock

    @property
    def name(self) -> str:
        """Return what to call the sampler, such as its class name."""

    @property
    def config(self) -> dict[str, Any]:
        """Return the sampler's configuration as plain JSON values."""

    @property
    def digest(self) -> str:
        """Return a short hash that differs between samplers that need different plans."""

    @property
    def timesteps(self) -> list[float]:
        """Return the timesteps of the present trajectory, in the order in which they are run."""

    def step_weights(self) -> npt.NDArray[np.float64]:
        """Return how far an error in the denoiser's output at each step moves the sample, float64 [steps].

        Raises:
            SensitivityError: If that cannot be told.
        """

    def noise_levels(self) -> Sequence[float]:
        """Return the share of noise sigma / (alpha + sigma) in the sample at each step; see ``SensitivityInfo``.

        Raises:
            SensitivityError: If that cannot be told; plans are then for the measured timesteps alone.
        """

    def detach(self) -> None:
        """Leave the sampler as it was; what the properties return stays."""


class SamplerStep(Protocol):
    """One step that a sampler took, recorded so that it can be taken again from another sample."""

    @property
    def model_output(self) -> torch.Tensor:
        """Return what the sampler was given for the denoiser's output."""

    @property
    def sample(self) -> torch.Tensor:
        """Return the sample before the step, [batch, ...]."""

    @property
    def following(self) -> torch.Tensor:
        """Return the sample after it."""

    def fresh_sampler(self) -> Any:
        """Return a sampler that is about to take this step; a deep copy of it goes on by itself."""

    def take(self, sampler: Any, model_output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Take the step again, with the same noise, and return the sample after it.

        Args:
            sampler: One at this step; it goes on to the next.
            model_output: Instead of the recorded one.
            sample: Instead of the recorded one.
        """


class Framework(Protocol):
    """A library whose pipelines run denoisers under a sampler.

    Attributes:
        name: Its name, for messages.
    """

    name: str

    def hosts(self, value: Any) -> bool:
        """Return whether a pipeline, a sampler or a model is of this framework, or is hooked by it."""

    def is_pipeline(self, value: Any) -> bool:
        """Return whether a value has denoisers and a sampler."""

    def denoisers_of(self, pipe: Any) -> Mapping[str, torch.nn.Module]:
        """Return the denoisers of a pipeline by component name.

        Raises:
            OptionError: If there is none.
        """

    def sampler_of(self, pipe: Any) -> Any:
        """Return the sampler of a pipeline."""

    def attach(self, sampler: Any) -> SamplerHook:
        """Let a sampler drive a clock of its own until the hook is detached.

        Raises:
            OptionError: If another hook has it.
        """

    def recorded_steps(self, sampler: Any, keep: Callable[[SamplerStep], None]) -> AbstractContextManager[None]:
        """Return a context in which ``keep`` takes each step of a sampler; only ``record`` needs it.

        Raises:
            OptionError: If a hook has the sampler.
        """

    def around_calls(self, module: torch.nn.Module) -> Callable[[], AbstractContextManager[None]]:
        """Return what makes the context that must be held around each call of a denoiser.

        Raises:
            OptionError: If the denoiser is kept in a way that cannot be captured.
        """

    def name_branches(self, module: torch.nn.Module, clock: Clock) -> Callable[[], None]:
        """Let the names that pipelines give to the calls of a step reach a clock; return what undoes it."""

    def holders(self, module: torch.nn.Module) -> Iterable[Holder]:
        """Return all places where the bound forward of a module may be kept, ``module.forward`` first."""


FRAMEWORKS: tuple[Framework, ...] = (Diffusers(),)


def framework_of(*values: Any) -> Framework | None:
    """Return the framework that hosts one of the values, a model or its sampler; None for plain torch."""
    return next((each for each in FRAMEWORKS if any(map(each.hosts, values))), None)


def around_calls(module: torch.nn.Module, framework: Framework | None) -> Callable[[], AbstractContextManager[None]]:
    """Return what makes the context that must be held around each call of a denoiser; see ``Framework``.

    Raises:
        OptionError: If the denoiser is kept in a way that cannot be captured.
    """
    return framework.around_calls(module) if framework is not None else nullcontext


def denoisers_of(model: Any, framework: Framework | None) -> Mapping[str, torch.nn.Module]:
    """Return the denoisers of a pipeline by component name; a denoiser itself is called ``model``.

    Raises:
        OptionError: If the model is neither.
    """
    if framework is not None and framework.is_pipeline(model):
        return framework.denoisers_of(model)
    if isinstance(model, torch.nn.Module):
        return {"model": model}
    names = " or ".join(each.name for each in FRAMEWORKS)
    raise OptionError(f"model is a {type(model).__name__}; pass a torch.nn.Module or a {names} pipeline")


def denoiser_of(model: Any, framework: Framework | None) -> torch.nn.Module:
    """Return the one denoiser of a pipeline, or the denoiser itself.

    Raises:
        OptionError: If there is none, or more than one.
    """
    found = denoisers_of(model, framework)
    if len(found) != 1:
        raise OptionError(
            f"{type(model).__name__} has {len(found)} denoisers ({', '.join(found)}), so one sensitivity will not do; "
            "use soda_compile.accelerate(pipe, speedup=...), which measures each"
        )
    return next(iter(found.values()))


@dataclass(eq=False)
class Stage:
    """The part of the schedule in which one denoiser is called.

    Attributes:
        hook: Drives a clock by the scheduler.
        clock: The denoiser's clock, whose step 0 is the first of this part.
        first: That step's index in the schedule; None to take the first call of each trajectory.
        called_at: Index in the schedule of the first call of the present trajectory.
    """

    hook: SamplerHook
    clock: Clock
    first: int | None = None
    called_at: int = 0

    def place(self) -> None:
        """Set the denoiser's clock to what the scheduler says; called before each denoiser call.

        Raises:
            TrajectoryError: If the scheduler has not begun a trajectory, or this part of the schedule is still ahead.
        """
        master = self.hook.clock
        if not master.trajectory:
            raise TrajectoryError(
                f"the denoiser is called, but {self.hook.name} of the pipeline has not set its "
                "timesteps since it was tied; run the pipeline itself, and if its scheduler was replaced, restore "
                "the pipeline and accelerate it again"
            )
        if self.clock.trajectory != master.trajectory:
            self.clock.trajectory, self.called_at = master.trajectory, master.step
        first = self.called_at if self.first is None else self.first
        self.clock.schedule = (master.schedule, first)
        if master.step < first:
            raise TrajectoryError(
                f"the denoiser is called at step {master.step} of the schedule, but its plan starts at step {first}; "
                "calibrate with settings under which it is called from there on (accelerate(..., refresh=True) does so "
                "whatever is stored)"
            )
        self.clock.step = master.step - first
