"""The setting that a measurement holds for, and how far two settings are apart."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from soda_compile.integrations.diffusers.pipeline_call import Value

VERSION = 3  # of the layout of folders and of what a key means

Kind = Literal["argument", "guidance", "size", "weights", "scheduler", "timesteps", "steps", "pipeline"]
IMPORTANCE: dict[Kind, int] = {
    "argument": 1, "guidance": 2, "size": 3, "weights": 4, "scheduler": 5, "timesteps": 6, "steps": 8, "pipeline": 8
}  # fmt: skip

_SIZES = ("height", "width", "frames", "length", "size", "resolution", "audio", "duration")
_DIGITS = 6  # of a timestep, significant: devices differ in the seventh


@dataclass(frozen=True)
class Setting:
    """All that a measurement depends on, as a generation shows it when it begins.

    Attributes:
        pipeline: Class name of the pipeline.
        models: Digests of the denoisers by component name.
        architectures: Digests of what does not change with the weights, by component name.
        scheduler: Class name and digest of the noise scheduler.
        steps: The pipeline's ``num_inference_steps``.
        timesteps: Those of the schedule; of these a call may run a part, which ``call`` tells.
        call: Numbers among the arguments of the pipeline's call, see ``call_of``.
    """

    pipeline: str
    models: Mapping[str, str]
    architectures: Mapping[str, str]
    scheduler: str
    steps: int
    timesteps: tuple[float, ...]
    call: Mapping[str, Value]

    def __post_init__(self) -> None:
        rounded = tuple(float(f"{timestep:.{_DIGITS}g}") for timestep in self.timesteps)
        object.__setattr__(self, "timesteps", rounded)

    @property
    def key(self) -> str:
        """Short hash, the name of a folder."""
        text = json.dumps([VERSION, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def guidance(self) -> float | None:
        """Guidance scale; None where the pipeline takes none."""
        scale = self.call.get("guidance_scale")
        return scale if isinstance(scale, float) else None

    def __str__(self) -> str:
        call = ", ".join(f"{name}={shown(value)}" for name, value in sorted(self.call.items()))
        return f"{self.pipeline}, {self.steps} steps of {self.scheduler}" + (f", {call}" if call else "")


@dataclass(frozen=True)
class Difference:
    """One thing in which a measurement's setting is not the present one.

    Attributes:
        kind: What it concerns.
        name: The argument, or the denoiser whose weights are others.
        text: What to tell.
        distance: How far apart numbers are, as the logarithm of their ratio; 1 where that says nothing.
    """

    kind: Kind
    name: str
    text: str
    distance: float = 1.0


def differences(measured: Setting, present: Setting) -> list[Difference]:
    """Return in what a measurement's setting differs from the present one; architectures must be the same."""
    found = []
    if measured.pipeline != present.pipeline:
        found.append(Difference("pipeline", "", f"it was measured in a {measured.pipeline}"))
    for name, digest in present.models.items():
        if measured.models[name] != digest:
            text = f"the weights of pipe.{name} are not those that were measured (a LoRA, a fine-tune, another dtype?)"
            found.append(Difference("weights", name, text))
    if measured.scheduler != present.scheduler:
        found.append(Difference("scheduler", "", f"the scheduler is {present.scheduler}, not {measured.scheduler}"))
    if measured.steps != present.steps:
        text = f"{present.steps} steps instead of {measured.steps}"
        found.append(Difference("steps", "", text, _distance(measured.steps, present.steps)))
    elif not same_timesteps(measured, present):
        found.append(Difference("timesteps", "", "other timesteps"))
    for name in sorted({*measured.call, *present.call}):
        before, now = measured.call.get(name), present.call.get(name)
        if before != now:
            text = f"{name}={shown(now)} instead of {shown(before)}"
            found.append(Difference(_kind(name), name, text, _distance(before, now)))
    return found


def remoteness(found: list[Difference]) -> tuple[int, float]:
    """Return by what to sort measurements: the fewest and least important differences first, then the smallest.

    A guidance scale changes errors least, so it costs 2, and any other number but sizes 1; a size costs 3 (so does
    each of its sides), other weights 4, another scheduler 5, other timesteps at as many steps 6, and another number of
    steps 8, for which tables must be derived. The sum counts; where it is equal, the numbers that differ by the
    smallest factors win.
    """
    return sum(IMPORTANCE[each.kind] for each in found), sum(each.distance for each in found)


def same_timesteps(one: Setting, other: Setting) -> bool:
    """Return whether the timesteps are equal, but for rounding."""
    if len(one.timesteps) != len(other.timesteps):
        return False
    pairs = zip(one.timesteps, other.timesteps, strict=True)
    return all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6) for a, b in pairs)


def shown(value: Value | None) -> str:
    """Return a number as a user would write it."""
    if isinstance(value, tuple):
        return f"({', '.join(map(shown, value))})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _kind(name: str) -> Kind:
    if "guidance" in name or "cfg" in name:
        return "guidance"
    return "size" if any(part in name for part in _SIZES) else "argument"


def _distance(one: Value | None, other: Value | None) -> float:
    numbers = [value for value in (one, other) if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == 2 and min(numbers) > 0:
        return abs(math.log(numbers[0] / numbers[1]))
    return 1.0
