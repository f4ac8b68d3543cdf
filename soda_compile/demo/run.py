"""The whole road on the digits model: calibrate, plan, compile, compare, write."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.logging import disable_progress_bar
from rich.console import Console
from rich.progress import track

from soda_compile.acceleration.accelerate import accelerate
from soda_compile.acceleration.say import counted
from soda_compile.demo.figure import save_figure
from soda_compile.demo.measure import GUIDANCE, Fidelity, Method, draw, fidelity, ratio, time_rounds, warm_up
from soda_compile.demo.report import reading, row, table
from soda_compile.digits.classifier import load_classifier
from soda_compile.digits.pipeline import load
from soda_compile.errors import OptionError
from soda_compile.measure.calibration import calibrate
from soda_compile.planner import plan
from soda_compile.plans.sensitivity import Sensitivity

CALIBRATION_SAMPLES = 8  # in one generation
_CALIBRATION_SEED = 1_000_000  # no seed of the samples comes near


@dataclass(frozen=True)
class Settings:
    """Settings of the demonstration.

    Attributes:
        out: Folder for all files; made if it is not there.
        samples: Digits to draw, in one batch.
        generations: Generations to calibrate on.
        rounds: How often each method is timed.
        seed: Seed of the samples.
        speedups: Speedups by FLOPs to plan for, two of them.
    """

    out: Path
    samples: int = 64
    generations: int = 2
    rounds: int = 3
    seed: int = 0
    speedups: tuple[float, float] = (2.0, 3.0)


@dataclass(frozen=True)
class Outcome:
    """What the demonstration found, and the files that it wrote.

    Attributes:
        settings: Its settings.
        methods: The original, plain torch.compile, and the plans.
        ratios: Latency to that of plain torch.compile, in the same order.
        fidelities: Closeness to the original, in the same order.
        calibration_samples: Samples that the plans were made from, of other seeds.
        files: Paths.
    """

    settings: Settings
    methods: list[Method]
    ratios: list[float]
    fidelities: list[Fidelity]
    calibration_samples: int
    files: list[Path]

    def show(self) -> None:
        """Print the table, how to read it, and the paths."""
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
        console.print(table(self.methods, self.ratios, self.fidelities))
        calibration = f"from {self.calibration_samples} calibration rows of other seeds"
        threads, seed = torch.get_num_threads(), self.settings.seed
        console.print(reading(self.methods, self.fidelities, seed=seed, calibration=calibration, threads=threads))
        for path in self.files:
            console.print(f"wrote {path}", soft_wrap=True)

    def as_json(self) -> dict[str, Any]:
        """Return plain values: the settings, a row for each method, and the paths."""
        rows = zip(self.methods, self.ratios, self.fidelities, strict=True)
        return {
            "settings": self.settings,
            "calibration_samples": self.calibration_samples,
            "threads": torch.get_num_threads(),
            "methods": [row(method, ratio, fidelity) for method, ratio, fidelity in rows],
            "wrote": self.files,
        }


class Progress:
    """Says on standard error what is being done and since when."""

    def __init__(self) -> None:
        self.console = Console(file=sys.stderr, highlight=False)
        self._started = time.perf_counter()

    def say(self, text: str) -> None:
        """Print a line with the seconds since the start."""
        self.console.print(f"[dim]{time.perf_counter() - self._started:5.0f} s[/dim]  {text}")


def run(settings: Settings) -> Outcome:
    """Run the demonstration and write its files; what it is at goes to standard error.

    Raises:
        OptionError: A setting makes no sense.
        PlanError: A speedup is out of reach.
    """
    if settings.seed >= _CALIBRATION_SEED:
        raise OptionError(f"seed is {settings.seed}; it must be below {_CALIBRATION_SEED}, where calibration begins")
    if len(set(settings.speedups)) < len(settings.speedups):
        raise OptionError(f"speedups are {settings.speedups}; they must differ")
    _make_folder(settings.out)
    disable_progress_bar()
    progress = Progress()
    sensitivity = _calibrate(settings, progress)
    methods = _methods(settings, sensitivity)
    for method in methods:
        progress.say(f"first generation: {method.name}")
        warm_up(method, settings.samples, settings.seed)
    progress.say(f"{settings.rounds} round(s) of all methods")
    rounds = track(range(settings.rounds), "timing", console=progress.console, transient=True)
    time_rounds(methods, rounds, settings.samples, settings.seed)
    return _outcome(settings, sensitivity, methods)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"cannot make the folder {folder}: {error.strerror or error}") from error


def _calibrate(settings: Settings, progress: Progress) -> Sensitivity:
    progress.say(f"calibrating on {counted(settings.generations, 'generation')} of {CALIBRATION_SAMPLES} digits")
    pipe = load()

    def generate(number: int) -> None:
        draw(pipe, CALIBRATION_SAMPLES, _CALIBRATION_SEED + number)

    return calibrate(pipe, generate, generations=settings.generations, guidance=GUIDANCE)


def _methods(settings: Settings, sensitivity: Sensitivity) -> list[Method]:
    """Return the original, plain torch.compile and the plans, each with a pipeline of its own; nothing compiles yet."""
    original, compiled = Method("eager", load()), Method("torch.compile", load())
    compiled.pipe.transformer.forward = torch.compile(compiled.pipe.transformer.forward, fullgraph=True, dynamic=False)
    planned = [plan(sensitivity, speedup=speedup) for speedup in settings.speedups]
    names = [f"soda {speedup:g}x" for speedup in settings.speedups]
    return [
        original,
        compiled,
        *(Method(name, accelerate(load(), made), made) for name, made in zip(names, planned, strict=True)),
    ]


def _outcome(settings: Settings, sensitivity: Sensitivity, methods: list[Method]) -> Outcome:
    classifier = load_classifier()
    ratios = [ratio(method, methods[1]) for method in methods]
    fidelities = [fidelity(method, methods[0], classifier) for method in methods]
    files = _write(settings, sensitivity, methods, ratios, fidelities)
    return Outcome(settings, methods, ratios, fidelities, sensitivity.info.samples, files)


def _write(
    settings: Settings,
    sensitivity: Sensitivity,
    methods: list[Method],
    ratios: list[float],
    fidelities: list[Fidelity],
) -> list[Path]:
    """Write the picture, the plans and the sensitivity; return their paths."""
    paths = [settings.out / "digits.png", settings.out / "sensitivity.safetensors"]
    captions = ["the original", "the baseline"]
    for latency, closeness in zip(ratios[2:], fidelities[2:], strict=True):
        captions.append(f"{latency:.2f} of the baseline's latency\nrelative L2 {closeness.mean:.1%}")
    save_figure(paths[0], methods, captions)
    sensitivity.save(paths[1])
    for method in methods:
        if method.plan is not None:
            paths.append(settings.out / f"plan_{method.name.split()[-1]}.json")
            method.plan.save(paths[-1])
    return paths
