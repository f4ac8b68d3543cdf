"""Samples of a pipeline without a plan and with it, from the same noise, and how long they take."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from soda_compile.acceleration.accelerate import accelerate
from soda_compile.acceleration.handle import restore
from soda_compile.acceleration.pictures import Image, as_image
from soda_compile.errors import OptionError
from soda_compile.integrations.diffusers.denoisers import denoisers_of
from soda_compile.integrations.diffusers.progress_bars import without_progress_bar
from soda_compile.storage.progress import progress_bar


@dataclass(frozen=True, eq=False)
class Sampled:
    """One sample, twice.

    Attributes:
        seed: Its seed.
        original: Compiled by Inductor alone; of a video the frame in the middle.
        accelerated: By the plan.
        original_s: Time of the generation, in seconds; nothing is compiled in it.
        accelerated_s: The same, by the plan.
    """

    seed: int
    original: Image
    accelerated: Image
    original_s: float
    accelerated_s: float


def sample_both(pipe: Any, call: Mapping[str, Any], seeds: Sequence[int], settings: Mapping[str, Any]) -> list[Sampled]:
    """Draw each seed without a plan and with it.

    Args:
        pipe: A diffusers pipeline, not accelerated; it is left as it was.
        call: What it is called with, beside the generator.
        seeds: Those to draw.
        settings: What ``accelerate`` is called with: ``plan``, or ``speedup`` and so on.

    Raises:
        OptionError: The pipeline gives no pictures.
    """

    def draw(seed: int) -> Image:
        with without_progress_bar(pipe):
            return _image(pipe(**call, generator=torch.Generator().manual_seed(seed)))

    with _by_inductor(pipe):
        original = _timed(draw, seeds, "drawing by torch.compile")
    accelerate(pipe, **settings)
    try:
        accelerated = _timed(draw, seeds, "drawing by the plan")
    finally:
        restore(pipe)
    pairs = zip(seeds, original, accelerated, strict=True)
    return [Sampled(seed, one, other, one_s, other_s) for seed, (one, one_s), (other, other_s) in pairs]


@contextmanager
def _by_inductor(pipe: Any) -> Iterator[None]:
    """Let the denoisers run as ``torch.compile`` makes them."""
    denoisers = denoisers_of(pipe).values()
    for each in denoisers:
        each.compile()
    try:
        yield
    finally:
        for each in denoisers:
            each._compiled_call_impl = None


def _timed(draw: Callable[[int], Image], seeds: Sequence[int], doing: str) -> list[tuple[Image, float]]:
    draw(seeds[0])  # compiles
    found = []
    with progress_bar() as progress:
        for seed in progress.track(seeds, description=doing):
            started = time.perf_counter()
            image = draw(seed)
            found.append((image, time.perf_counter() - started))
    return found


def _image(result: Any) -> Image:
    """Return the first picture of what a pipeline gave."""
    pictures = getattr(result, "images", None)
    if pictures is None:
        frames = getattr(result, "frames", None)
        if frames is None:
            raise OptionError(f"the pipeline gave {type(result).__name__}, which holds neither images nor frames")
        pictures = [frames[0][len(frames[0]) // 2]]
    try:
        return as_image(pictures[0])
    except ValueError as error:
        raise OptionError(f"the pipeline's first image cannot be read: {error}; leave output_type as it is") from error
