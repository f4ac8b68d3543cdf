"""Times the methods in turn, and compares what they draw with what the original draws."""

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from soda_compile.acceleration.pictures import decibels
from soda_compile.digits.classifier import DigitClassifier, accuracy
from soda_compile.digits.pipeline import DigitsPipeline
from soda_compile.plans.plan import Plan

STEPS = 50
GUIDANCE = 1.5


@dataclass(eq=False)
class Method:
    """One way to run the denoiser.

    Attributes:
        name: What to call it.
        pipe: A pipeline of its own, prepared; nothing is compiled before its first call.
        plan: What it follows, if it follows one.
        first_s: Seconds inside denoiser calls in the first generation, which compiles.
        rounds_s: The same for each later generation.
        latents: What it drew first: float32 (n, 1, 8, 8), nominally in [-1, 1].
    """

    name: str
    pipe: DigitsPipeline
    plan: Plan | None = None
    first_s: float = math.nan
    rounds_s: list[float] = field(default_factory=list)
    latents: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def flop_ratio(self) -> float:
        """FLOPs / FLOPs of computing everything."""
        return 1.0 if self.plan is None or self.plan.flop_ratio is None else self.plan.flop_ratio

    @property
    def latency_s(self) -> float:
        """Seconds inside denoiser calls over a whole trajectory, the median over rounds."""
        return statistics.median(self.rounds_s)

    @property
    def compile_s(self) -> float:
        """Seconds that the first generation took longer than the later ones."""
        return max(0.0, self.first_s - self.latency_s)

    @property
    def images(self) -> Tensor:
        """The first samples: float32 (n, 1, 8, 8), clamped to [0, 1]."""
        return (self.latents / 2 + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class Fidelity:
    """Closeness of samples to those of the original for the same seeds, and whether they show their class.

    Attributes:
        mean: Mean over samples of the relative L2 distance of the latents, |x - original| / |original|.
        median: Median of the same.
        psnr_db: Peak signal-to-noise ratio over all pixels of the images in [0, 1]; infinite where all are equal.
        accuracy: Share of the images that the classifier gives their label.
    """

    mean: float
    median: float
    psnr_db: float
    accuracy: float


@contextmanager
def timed_calls(module: torch.nn.Module) -> Iterator[list[float]]:
    """Collect the wall time inside each call of a module, whatever its forward is.

    For the CPU, where calls do not return early.
    """
    started: list[float] = []
    seconds: list[float] = []
    with (
        module.register_forward_pre_hook(lambda *_: started.append(time.perf_counter())),
        module.register_forward_hook(lambda *_: seconds.append(time.perf_counter() - started[-1])),
    ):
        yield seconds


def draw(pipe: DigitsPipeline, count: int, seed: int) -> Tensor:
    """Draw the digits 0 to 9 in turn; return latents (count, 1, 8, 8).

    Every sample has a generator of its own, so different seeds never share noise.
    """
    generators = [torch.Generator().manual_seed(seed * 1_000_000 + index) for index in range(count)]
    latents: Tensor = pipe(labels(count).tolist(), GUIDANCE, STEPS, generator=generators, output_type="latent").images
    return latents


def labels(count: int) -> Tensor:
    """Return the digits that ``draw`` draws, int64 (count,)."""
    return torch.arange(count) % 10


def warm_up(method: Method, samples: int, seed: int) -> None:
    """Run the first generation, which compiles, and keep what it drew."""
    with timed_calls(method.pipe.transformer) as seconds:
        method.latents = draw(method.pipe, samples, seed)
    method.first_s = sum(seconds)


def time_rounds(methods: Sequence[Method], rounds: Iterable[int], samples: int, seed: int) -> None:
    """Run each method once a round, each round beginning with another one, so that all see the same noise."""
    for number in rounds:
        start = number % len(methods)
        for method in (*methods[start:], *methods[:start]):
            with timed_calls(method.pipe.transformer) as seconds:
                draw(method.pipe, samples, seed)
            method.rounds_s.append(sum(seconds))


def ratio(method: Method, baseline: Method) -> float:
    """Return the latency over the baseline's, the median of the rounds' ratios."""
    return statistics.median(mine / theirs for mine, theirs in zip(method.rounds_s, baseline.rounds_s, strict=True))


def fidelity(method: Method, original: Method, classifier: DigitClassifier) -> Fidelity:
    """Compare what a method drew with what the original drew."""
    difference = (method.latents - original.latents).flatten(1).norm(dim=1)
    relative = difference / original.latents.flatten(1).norm(dim=1)
    error = float((method.images - original.images).square().mean())
    return Fidelity(
        mean=float(relative.mean()),
        median=statistics.median(relative.tolist()),
        psnr_db=decibels(error),
        accuracy=accuracy(classifier, method.images * 2 - 1, labels(len(method.latents))),
    )
