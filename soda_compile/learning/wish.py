"""What is asked of a backend that measures itself, among the options of ``torch.compile``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soda_compile.acceleration.measurement_folder import Request
from soda_compile.errors import OptionError
from soda_compile.planner import AnchorSchedule, Goal, Unified
from soda_compile.storage.cache import cache_folder

QUALITIES = {"near-lossless": 1.5, "balanced": 2.0, "fast": 3.0}
"""Speedups by FLOPs that words stand for; what they did to the samples of trained models is in the documentation."""

GOALS = ("speedup", "max_error", "latency_ms", "quality")


@dataclass(frozen=True)
class Wish:
    """Options of ``torch.compile(model, backend="soda", options={...})`` where the backend measures and plans.

    Attributes:
        request: What plans shall reach: of ``speedup`` (by FLOPs), ``max_error`` (of ``Plan.predicted_error``),
            ``latency_ms`` (all denoiser calls of a generation; actions are timed on the device first) and ``quality``
            ("near-lossless", "balanced" or "fast", a speedup of 1.5, 2 or 3) exactly one is given.
        generations: How many to observe; in each a quarter of the regions is measured.
        max_interval: Longest time, in steps, that a value may be kept; None for what the request needs.
        background: Whether to plan and compile in a thread while generations go on; otherwise the generation after the
            last observed one waits.
        cache: Folder of stored measurements, as for ``soda_compile.accelerate``.
    """

    request: Request
    generations: int = 8
    max_interval: int | None = None
    background: bool = True
    cache: Path = field(default_factory=cache_folder)

    def reach(self, steps: int) -> int:
        """Return the longest time that a value may be kept in a generation of so many steps."""
        return self.max_interval or self.request.goal.reach(steps)


def take_wish(options: Mapping[str, Any]) -> tuple[Wish | None, dict[str, Any]]:
    """Split options of the backend into the wish, if there is one, and the rest.

    Raises:
        OptionError: If goals contradict each other, or a value cannot be used.
    """
    given = {name: options[name] for name in GOALS if options.get(name) is not None}
    ours = {*GOALS, "generations", "max_interval", "background", "cache"}
    rest = {name: value for name, value in options.items() if name not in ours}
    settings = {name: options[name] for name in sorted(ours - set(GOALS)) if options.get(name) is not None}
    if not given:
        if settings:
            raise OptionError(
                f"option {min(settings)!r} says how the backend measures, but not what for; give one of "
                f"{', '.join(GOALS)} too, such as options={{'speedup': 2.0}}"
            )
        return None, rest
    if rest.get("plan") is not None or rest.get("observer") is not None:
        raise OptionError(f"option {min(given)!r} lets the backend plan by itself, so leave out plan and observer")
    if len(given) > 1:
        raise OptionError(f"give exactly one of {', '.join(GOALS)}; got {', '.join(given)}")
    strategy = Unified() if "max_error" in given else AnchorSchedule()
    return Wish(Request(_goal(*given.popitem()), strategy), **_checked(settings)), rest


def _goal(name: str, value: Any) -> Goal:
    if name == "quality":
        if value not in QUALITIES:
            raise OptionError(f"quality is {value!r}; it must be one of {', '.join(QUALITIES)}")
        return Goal(speedup=QUALITIES[value])
    least = 1 if name == "speedup" else 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > least:
        raise OptionError(f"{name} is {value!r}; it must be a number above {least}")
    numbers: dict[str, Any] = {name: float(value)}
    return Goal(**numbers)


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    for name in ("generations", "max_interval"):
        value = settings.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(f"{name} is {value!r}; it must be a whole number, at least 1")
    if not isinstance(settings.get("background", True), bool):
        raise OptionError(f"background is {settings['background']!r}; it must be True or False")
    return {**settings, "cache": Path(settings["cache"])} if "cache" in settings else settings
