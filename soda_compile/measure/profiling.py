"""Measures what each action of each region costs in time, as compiled, on the device at hand."""

import functools
import itertools
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from soda_compile.backend.entry import soda
from soda_compile.backend.options import check_options
from soda_compile.capture.forward import Holders, compile_forward, own_holder
from soda_compile.compiler.analyse import analyse_model
from soda_compile.errors import CaptureError, OptionError, ProfileError
from soda_compile.integrations.base import Framework, around_calls, denoiser_of, framework_of
from soda_compile.measure.gram import Floats
from soda_compile.measure.probing import Probing
from soda_compile.measure.profile_store import default_folder, device_name, profile_key
from soda_compile.plans.profile import Profile
from soda_compile.plans.pruning import Pruning
from soda_compile.runtime.generation import trajectory
from soda_compile.storage.cache import keep
from soda_compile.storage.progress import progress_bar

Inputs = Mapping[str, Any] | Sequence[Any] | Callable[[int], Any]
Call = tuple[tuple[Any, ...], dict[str, Any]]

WARM_UP_ROUNDS = 2
NOISY = 0.2  # a spread above this makes the small differences between actions meaningless


def profile(
    model: Any,
    inputs: Inputs,
    *,
    pruning: Pruning | None = None,
    rounds: int = 7,
    mode: str | None = None,
    inductor: dict[str, Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
    refresh: bool = False,
    framework: Framework | None = None,
) -> Profile:
    """Time every action of every region of a denoiser, compiled, with these shapes and dtypes on this device.

    Steps are compiled and run through the backend as those of a plan are, so that what is timed is what will run.
    The result is kept in a folder under the hash of everything it depends on, and read from there the next time.

    Args:
        model: The denoiser (not compiled), or a pipeline, such as one of diffusers.
        inputs: What to call the denoiser with: a dict by name, a tuple by position, or a function that takes a seed
            and runs a generation, of which the first denoiser call is taken.
        pruning: How tokens are picked; None leaves pruning out.
        rounds: How often to time each step; the rounds are interleaved, and medians are taken.
        mode: As for ``torch.compile``.
        inductor: Settings for Inductor, as in the backend's options.
        folder: Where profiles are kept; by default ``profiles`` in the folder that the environment variable
            SODA_COMPILE_CACHE names, or in ``soda_compile`` in the user's cache directory.
        refresh: Measure anew, whatever is kept.
        framework: What hosts the model; by default the built-in one that knows it.

    Raises:
        OptionError: For arguments that make no sense.
        CaptureError: If the model's regions are not all in one graph.
        ProfileError: If a kept profile is damaged.
    """
    if hasattr(model, "_orig_mod"):
        raise OptionError("profile takes the model before torch.compile; pass compiled._orig_mod")
    if rounds < 1:
        raise OptionError(f"rounds is {rounds}; it must be at least 1")
    check_options({"inductor": inductor or {}}, mode)
    framework = framework or framework_of(model)
    denoiser = denoiser_of(model, framework)
    holders = framework.holders if framework else own_holder
    around = around_calls(denoiser, framework)
    call = _first_call(denoiser, inputs)
    structure = analyse_model(denoiser, *call, holders, around)
    if not structure.regions:
        raise CaptureError(f"{type(denoiser).__name__} has no region, so there is nothing to time")
    settings = {"pruning": pruning, "mode": mode, "inductor": inductor or {}}
    device = device_name(structure.regions[0].cuts[0].device)
    key = profile_key(structure, device, settings)
    folder = Path(folder) if folder is not None else default_folder()
    path = folder / f"{key}.json"
    if not refresh and os.path.exists(path):
        kept = Profile.load(path)
        if kept.key != key:
            raise ProfileError(f"{path}: it belongs to {kept.key}; delete the file or pass refresh=True")
        return kept
    probing = Probing.build(structure, pruning)
    made = probing.profile(_time(denoiser, call, (around, holders), probing, rounds, mode, inductor), device, key)
    if made.spread > NOISY:
        warnings.warn(
            f"the times of equal steps differ by {made.spread:.0%} (interquartile range over median): something else "
            "uses the device. Measure again with refresh=True when it is idle, or take more rounds",
            stacklevel=2,
        )
    keep(folder, lambda: made.save(path))
    return made


class _FirstCall(Exception):
    """Ends a generation at its first denoiser call."""


def _first_call(denoiser: torch.nn.Module, inputs: Inputs) -> Call:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if not callable(inputs):
        return tuple(inputs), {}
    calls: list[Call] = []

    def note(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))
        raise _FirstCall

    try:
        with denoiser.register_forward_pre_hook(note, with_kwargs=True), torch.no_grad():
            inputs(0)
    except _FirstCall:
        return calls[0]
    raise OptionError("inputs(seed) did not call the model; it must call the very object that is profiled")


def _time(
    denoiser: torch.nn.Module,
    call: Call,
    hosted: tuple[Callable[[], AbstractContextManager[None]], Holders],
    probing: Probing,
    rounds: int,
    mode: str | None,
    inductor: dict[str, Any] | None,
) -> Floats:
    """Return the time of each step in microseconds, [rounds, steps]."""
    backend = functools.partial(soda, options={"plan": probing.plan, "inductor": inductor or {}}, mode=mode)
    with compile_forward(denoiser, backend, *hosted), torch.no_grad():
        return time_rounds(lambda: denoiser(*call[0], **call[1]), lambda: trajectory(denoiser), probing, rounds)


def time_rounds(
    run: Callable[[], Any], opened: Callable[[], AbstractContextManager[Any]], probing: Probing, rounds: int
) -> Floats:
    """Return the time of each step in microseconds, [rounds, steps].

    Args:
        run: Calls the denoiser, compiled by the plan of the probes.
        opened: Opens a generation for the calls of a round.
        probing: The steps.
        rounds: How often to time each, after some for warming up.
    """
    timer = _cuda_timer if probing.structure.regions[0].cuts[0].device.type == "cuda" else _host_timer
    times = []
    with progress_bar() as progress:
        for _ in progress.track(range(WARM_UP_ROUNDS + rounds), description="profiling"):
            with opened():
                times.append(timer(run, len(probing.steps)))
    return np.array(times[WARM_UP_ROUNDS:])


def _host_timer(run: Callable[[], Any], steps: int) -> list[float]:
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        run()
        times.append((time.perf_counter() - started) * 1e6)
    return times


def _cuda_timer(run: Callable[[], Any], steps: int) -> list[float]:
    """Time between events on the CUDA stream: launches overlap as in real use, and count only where it waits."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e3 for start, end in itertools.pairwise(events)]
