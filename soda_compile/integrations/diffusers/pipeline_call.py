"""What the pipeline call under way was asked for: the numbers among its arguments that a measurement depends on."""

import math
import sys
from collections.abc import Mapping, Sequence
from numbers import Real
from types import FrameType
from typing import Any

Value = bool | float | tuple[float, ...]

_NOT_THE_DENOISERS = ("return_dict", "num_inference_steps", "clean_caption", "seed")  # the steps are in the timesteps
_NOT_THE_DENOISERS_EITHER = ("decode", "callback")  # how such names begin
_OF_A_BATCH = "_per_prompt"  # how such names end
_LISTS = ("guidance", "cfg", "size")  # in names of arguments whose lists of numbers count; others may be class labels
_PICTURES = ("image", "video", "latents")


def call_of(scheduler: Any) -> dict[str, Value]:
    """Return the numbers that the pipeline call which drives a scheduler was given, by argument name, sorted.

    Read at ``set_timesteps``, where pipelines have put in their defaults, from the arguments of the innermost
    ``__call__`` on the stack whose object holds the scheduler. These are its sizes, all its guidance scales, the
    strength, where denoising starts and ends, switches, and whatever numbers else the pipeline's signature has, but
    not what concerns the batch or the decoder. Where no size is among them, the height and width of a picture that is
    passed in stand for it.

    Returns:
        The numbers; empty where no pipeline drives the scheduler, as in a loop of one's own.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "__call__" and _holds(frame.f_locals.get("self"), scheduler):
            return _numbers(_arguments(frame))
        frame = frame.f_back
    return {}


def _holds(value: Any, scheduler: Any) -> bool:
    return bool(type(value).__dictoffset__) and vars(value).get("scheduler") is scheduler


def _arguments(frame: FrameType) -> dict[str, Any]:
    code, values = frame.f_code, frame.f_locals
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return {name: values[name] for name in names if name != "self" and name in values}


def _numbers(arguments: Mapping[str, Any]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, value in sorted(arguments.items()):
        if name in _NOT_THE_DENOISERS or name.startswith(_NOT_THE_DENOISERS_EITHER) or name.endswith(_OF_A_BATCH):
            continue
        number = _number(value, lists=any(part in name for part in _LISTS))
        if number is not None:
            found[name] = number
    if "height" not in found and "width" not in found:
        for name in _PICTURES:
            if (size := _picture_size(arguments.get(name))) is not None:
                found[f"{name}_size"] = size
    return found


def _number(value: Any, *, lists: bool) -> Value | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    if lists and isinstance(value, Sequence) and not isinstance(value, str):
        numbers = [_number(entry, lists=False) for entry in value]
        if numbers and all(isinstance(number, float) for number in numbers):
            return tuple(numbers)  # type: ignore[arg-type]
    return None


def _picture_size(value: Any) -> tuple[float, ...] | None:
    """Return height and width of a picture, a batch or a list of them; None if it is none."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    shape = getattr(value, "shape", None)
    if shape is not None and len(shape) >= 2:
        return tuple(float(size) for size in shape[-2:])
    size = getattr(value, "size", None)  # of PIL images: width, height
    if isinstance(size, tuple) and len(size) == 2:
        return (float(size[1]), float(size[0]))
    return None
