"""Compilation before the first request: calls that will come are made once."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from soda_compile.acceleration.stats import stats
from soda_compile.errors import OptionError
from soda_compile.storage.progress import progress_bar

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AheadCall:
    """What one call took.

    Attributes:
        call: Its arguments.
        seconds: Time of the call, compilation included.
        compilations: Graphs that were compiled.
        misses: Denoiser calls that no plan covers, by kind: such requests will not be faster.
    """

    call: Mapping[str, Any]
    seconds: float
    compilations: int
    misses: Mapping[str, int]


def compile_ahead(
    pipe: Any, calls: Sequence[Mapping[str, Any]], *, generate: Callable[..., Any] | None = None
) -> tuple[AheadCall, ...]:
    """Make each call once, so that requests like them find everything compiled: sizes, step counts, guidance, adapters.

    For example::

        soda_compile.compile_ahead(pipe, [{"prompt": "warm up", "height": size} for size in (512, 768)])

    A bar shows how far it is, where standard error is a terminal or a notebook; the log has a line for each call.

    Args:
        pipe: An accelerated pipeline, or a denoiser compiled with backend "soda".
        calls: Arguments by name, a mapping for each call.
        generate: What is called with them; the pipeline itself by default. For a denoiser, the loop that calls it.

    Returns:
        For each call what it took.

    Raises:
        OptionError: If there is nothing to call.
    """
    run = generate or (None if isinstance(pipe, torch.nn.Module) else pipe)
    if not callable(run):
        raise OptionError(f"pass generate=, the loop that calls this {type(pipe).__name__}: it is no pipeline")
    if isinstance(calls, Mapping) or not calls:
        raise OptionError(f"calls is {calls!r}; it must be a list of the arguments of at least one call")
    made = []
    with progress_bar() as progress:
        for call in progress.track(calls, description="compiling ahead"):
            before, started = _counts(pipe), time.perf_counter()
            with torch.no_grad():
                run(**call)
            compilations, misses = _counts(pipe)
            new = {kind: count - before[1].get(kind, 0) for kind, count in misses.items()}
            new = {kind: count for kind, count in new.items() if count}
            made.append(AheadCall(call, time.perf_counter() - started, compilations - before[0], new))
            log.info(
                "call %d of %d: %d graphs compiled in %.1f s%s", len(made), len(calls), made[-1].compilations,
                made[-1].seconds, f", without the plan: {new}" if new else "",
            )  # fmt: skip
    return tuple(made)


def _counts(pipe: Any) -> tuple[int, dict[str, int]]:
    found = stats(pipe).values()
    misses: dict[str, int] = {}
    for each in found:
        for kind, count in each["misses"].items():
            misses[kind] = misses.get(kind, 0) + count
    return sum(each["compilations"] for each in found), misses
