"""What a replica does, without Ray: loads a pipeline, draws what is ordered in any thread, and says how it went."""

import copy
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import soda_compile
from examples.serving.orders import SIZES, STEPS, Order
from soda_compile.digits.pipeline import DigitsPipeline, load

SPEEDUP = 2.0


def prepare_thread() -> None:
    """Let a thread, which draws one order at a time, compute alone, and compile for each size by itself.

    These settings are a thread's own. Sums do not depend on the number of threads then; and the few sizes that are
    served are compiled sooner one by one than for all sizes at once.
    """
    torch.set_num_threads(1)
    torch._dynamo.config.automatic_dynamic_shapes = False


class Interrupted(Exception):
    """The client went away while its order was drawn."""


class Replica(ABC):
    """Pipelines that are ready for every order.

    Attributes:
        pipes: By number of steps; the same one several times where it serves several.
        measured: Generations that were run to measure the model, in this process.
        seconds: Time from the beginning until all was loaded, measured and compiled.
        counts: Orders by what became of them, ``finished`` and ``interrupted``.
    """

    def __init__(self, folder: Path) -> None:
        prepare_thread()
        started = time.perf_counter()
        self.measured = 0  # where nothing is measured
        self.counts = Counter[str]()
        self.pipes = self._load(folder)
        for steps in STEPS:
            for size in SIZES:
                self._run(Order((0,) * size, steps, 0))  # compiles
        self.seconds = time.perf_counter() - started

    @abstractmethod
    def _load(self, folder: Path) -> Mapping[int, DigitsPipeline]:
        """Return the pipelines by number of steps."""

    def draw(self, order: Order, cancelled: threading.Event | None = None) -> torch.Tensor:
        """Draw what was ordered, float32 (n, 1, 8, 8) in [0, 1].

        Args:
            order: What to draw.
            cancelled: Set by whoever waits, to stop at the end of the present step.

        Raises:
            Interrupted: It was set.
        """
        try:
            images = self._run(order, cancelled)
        except Interrupted:
            self.counts["interrupted"] += 1
            raise
        self.counts["finished"] += 1
        return images

    def _run(self, order: Order, cancelled: threading.Event | None = None) -> torch.Tensor:
        def stop_if_cancelled(*_: Any) -> dict[str, Any]:
            if cancelled is not None and cancelled.is_set():
                raise Interrupted
            return {}

        shared = self.pipes[order.steps]
        pipe = copy.copy(shared)  # the scheduler tells whose call it is: each order has a copy
        pipe.scheduler = copy.deepcopy(shared.scheduler)
        images: torch.Tensor = pipe(**order.call(), output_type="pt", callback_on_step_end=stop_if_cancelled).images
        return images

    def stats(self) -> dict[str, Any]:
        """Return the statistics of the pipelines by name: ``transformer``, with the number of steps if it has one."""
        shared = len({id(pipe) for pipe in self.pipes.values()}) == 1
        named = {f"transformer-{steps}": pipe for steps, pipe in self.pipes.items()}
        if shared:
            named = {"transformer": self.pipes[max(STEPS)]}
        found = {name: soda_compile.stats(pipe)["transformer"] for name, pipe in named.items()}
        return {name: {**each, "generations": {}} for name, each in found.items()}  # metrics have no single ones


class Accelerated(Replica):
    """One pipeline that follows a plan for each number of steps, all of one measurement in a shared store."""

    def _load(self, folder: Path) -> Mapping[int, DigitsPipeline]:
        pipe = pipeline(folder)
        self.measured = len(accelerate_from_store(pipe, folder))
        return dict.fromkeys(STEPS, pipe)


class Packaged(Replica):
    """A package for each number of steps, loaded without compiling."""

    def _load(self, folder: Path) -> Mapping[int, DigitsPipeline]:
        packages = {steps: soda_compile.load(package(folder, steps)) for steps in STEPS}
        return {steps: soda_compile.install(pipeline(folder), each) for steps, each in packages.items()}


class Original(Replica):
    """The pipeline as it is."""

    def _load(self, folder: Path) -> Mapping[int, DigitsPipeline]:
        return dict.fromkeys(STEPS, pipeline(folder))


class Plain(Replica):
    """The pipeline under ``torch.compile``, to compare with."""

    def _load(self, folder: Path) -> Mapping[int, DigitsPipeline]:
        pipe = pipeline(folder)
        pipe.transformer.compile(dynamic=False)
        return dict.fromkeys(STEPS, pipe)


def accelerate_from_store(pipe: DigitsPipeline, folder: Path) -> list[int]:
    """Accelerate a pipeline by what is stored; of processes that find nothing one measures, and the others wait.

    Returns:
        The seeds of the generations that were run to measure, and to try plans on.
    """
    measured = []

    def generate(seed: int) -> None:
        pipe(**Order((seed % 10, (seed + 5) % 10), max(STEPS), seed).call())
        measured.append(seed)  # not reached where a generation is only begun, to see what to look for in the store

    soda_compile.accelerate(pipe, speedup=SPEEDUP, calibrate_with=generate, cache=folder / "store")
    return measured


def pipeline(folder: Path) -> DigitsPipeline:
    """Load the pipeline that ``save_pretrained`` wrote to the folder as ``pipeline``, or else the one shipped."""
    saved = folder / "pipeline"
    return load(folder=saved) if saved.exists() else load()


def package(folder: Path, steps: int) -> Path:
    """Return where the package for a number of steps lies."""
    return folder / f"digits-{steps}.soda.pt2"


REPLICAS: Mapping[str, type[Replica]] = {"accelerated": Accelerated, "packages": Packaged, "plain": Plain}
