"""Generations to measure on: from prompts, from a number of samples, or from the user's own function."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from soda_compile.errors import OptionError
from soda_compile.integrations.diffusers.progress_bars import without_progress_bar

PROMPTS = (
    "a photograph of an old fisherman mending a net on a pier at dawn",
    "a red bicycle leaning against a white wall, hard shadows",
    "an oil painting of a mountain village in winter",
    "a bowl of ramen with an egg, seen from above",
    "two dogs running along a beach, motion blur",
    "a watercolour map of an island with a lighthouse",
    "the interior of a library with tall windows",
    "a close-up of a dragonfly on a blade of grass",
    "a neon sign that says OPEN in a rainy street at night",
    "a portrait of a woman in a yellow raincoat",
    "a steam train crossing a stone viaduct",
    "an isometric drawing of a small robot workshop",
)
GENERATIONS = 4  # where the user gives a function

CalibrateWith = int | Sequence[Any] | Callable[[int], Any]


def calibration_runs(
    pipe: Any, calibrate_with: CalibrateWith, options: Mapping[str, Any]
) -> tuple[Callable[[int], Any], int]:
    """Return a function that runs one generation from a seed, and how often to call it.

    Args:
        pipe: The pipeline.
        calibrate_with: See ``accelerate``.
        options: Arguments for every call of the pipeline.

    Raises:
        OptionError: If there is nothing to generate from, or an argument that the pipeline does not take.
    """
    if callable(calibrate_with):
        if options:
            raise OptionError(
                f"calibrate_with is a function, so {', '.join(options)} would not reach the pipeline; pass it in there"
            )
        return calibrate_with, generations_of(calibrate_with)
    parameters = inspect.signature(pipe.__call__).parameters
    unknown = [name for name in options if name not in parameters]
    if unknown:
        raise OptionError(f"{type(pipe).__name__} takes no argument {unknown[0]!r}")
    items = _items(pipe, calibrate_with, parameters)
    inputs = [item if isinstance(item, Mapping) else {_input_name(parameters): item} for item in items]

    def generate(seed: int) -> Any:
        arguments = {**options, **inputs[seed % len(inputs)]}
        if "generator" in parameters:
            arguments.setdefault("generator", torch.Generator().manual_seed(seed))
        with without_progress_bar(pipe):
            return pipe(**arguments)

    return generate, generations_of(calibrate_with)


def generations_of(calibrate_with: CalibrateWith) -> int:
    """Return how many generations make a measurement."""
    if callable(calibrate_with):
        return GENERATIONS
    return calibrate_with if isinstance(calibrate_with, int) else len(calibrate_with)


def _items(pipe: Any, calibrate_with: int | Sequence[Any], parameters: Mapping[str, Any]) -> Sequence[Any]:
    if not isinstance(calibrate_with, int):
        if isinstance(calibrate_with, str) or not len(calibrate_with):
            raise OptionError(f"calibrate_with is {calibrate_with!r}; it must be a list of at least one prompt")
        return calibrate_with
    if calibrate_with < 1:
        raise OptionError(f"calibrate_with is {calibrate_with}; it must be at least 1 generation")
    if "prompt" in parameters:
        return [PROMPTS[number % len(PROMPTS)] for number in range(calibrate_with)]
    classes = getattr(getattr(pipe.transformer, "config", None), "num_embeds_ada_norm", None)
    if "class_labels" in parameters and classes:
        return [[(7 * number) % classes] for number in range(calibrate_with)]
    raise OptionError(
        f"{type(pipe).__name__} takes neither a prompt nor class_labels; pass calibrate_with=generate, a function "
        "that runs one generation of the pipeline from a seed"
    )


def _input_name(parameters: Mapping[str, Any]) -> str:
    return "prompt" if "prompt" in parameters else next(iter(parameters))


def default_of(pipe: Any, name: str) -> Any:
    """Return the pipeline's default for an argument; None where it has none."""
    parameter = inspect.signature(pipe.__call__).parameters.get(name)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default
