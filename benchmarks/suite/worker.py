"""The process of one row: it applies the method, and measures when it is told to.

A process of its own gives each method its own compiled code, compiler settings, caches and memory. Rounds are
interleaved by telling one process after the other to run a trajectory; all others wait.
"""

import gc
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.suite.configs import Config
from benchmarks.suite.methods import methods
from benchmarks.suite.runner import Runner, bytes_in, run

MOST_WARM_UPS = 5


@dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        config: The denoiser.
        method: Name of the method.
        device: "cpu" or "cuda".
        steps: Calls in a trajectory.
        threads: Of the CPU.
        cache: Folder of the compiler's caches.
        log: File for what the process prints.
        seed: Of weights; that of the inputs is one more.
    """

    config: Config
    method: str
    device: str
    steps: int
    threads: int
    cache: str
    log: str
    seed: int = 0

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32


def serve(connection: Connection, job: Job) -> None:
    """Answers commands until it is told to end; an error is an answer too, and ends it."""
    _redirect(job.log)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = job.cache
    commands: dict[str, Callable[[], dict[str, Any]]] = {}
    try:
        for command in iter(connection.recv, "end"):
            if command == "start":
                session = Session(job)
                commands = {"round": session.round, "profile": session.profile, "memory": session.memory}
                answer = session.start()
            else:
                answer = commands[command]()
            connection.send(answer)
    except Exception as error:
        traceback.print_exc()
        connection.send({"error": _reason(error)})


class Session:
    """A method, applied to a denoiser."""

    def __init__(self, job: Job) -> None:
        from benchmarks.suite.models import make_inputs, make_model

        torch.set_num_threads(job.threads)
        self.job, self.method = job, methods(job.device)[job.method]
        model = make_model(job.config, job.device, job.dtype, job.seed)
        self.weights = bytes_in([list(model.parameters()), list(model.buffers())])
        self.calls = make_inputs(job.config, job.device, job.dtype, job.steps, job.seed + 1)
        with torch.no_grad():
            model(**self.calls[0])  # some models make tables at their first call
        self.runner: Runner = self.method.build(model, self.calls[0], job.steps)
        self.call: Callable[..., Any] = model
        self.held = 0

    def start(self) -> dict[str, Any]:
        """Counts FLOPs, compiles and warms up."""
        flops = None if self.runner.flops else self._eager_flops()
        if self.runner.compile:
            self.call = self.runner.compile(self.runner.model)
        seconds = self._warm_up()
        if self.runner.compile:
            _stop_compile_workers()
        flops = flops or list(self.runner.flops())  # type: ignore[misc]
        return {"warm_up": seconds, "compile_seconds": sum(seconds) - len(seconds) * seconds[-1], "flops": flops}

    def _warm_up(self) -> list[float]:
        """Seconds of trajectories until one compiles nothing any more."""
        seconds: list[float] = []
        while len(seconds) < MOST_WARM_UPS:
            sample = self.round()
            seconds.append(sample["seconds"])
            if len(seconds) > 1 and not sample["graphs_compiled"]:
                break
        return seconds

    def round(self) -> dict[str, Any]:
        """One trajectory: seconds in all and for each step, and how often Dynamo had to compile in it."""
        from torch._dynamo.utils import counters

        gc.collect()
        compiled = counters["stats"]["unique_graphs"]
        marks: list[Any] = []

        @contextmanager
        def around(step: int) -> Iterator[None]:
            marks.append(self._mark())
            yield
            marks.append(self._mark())

        self._synchronize()
        started = time.perf_counter()
        run(self.runner, self.call, self.calls, around)
        self._synchronize()
        seconds = time.perf_counter() - started
        steps = [self._between(*pair) for pair in zip(marks[::2], marks[1::2], strict=True)]
        return {"seconds": seconds, "steps": steps, "graphs_compiled": counters["stats"]["unique_graphs"] - compiled}

    def profile(self) -> dict[str, Any]:
        """Counts for a computed step late in the trajectory, and for the step after it."""
        from benchmarks.suite.counting import Counts, counts

        chosen, found = self._chosen(), dict[int, Counts]()
        run_call = self.call

        def counted(step: int, **inputs: Any) -> None:
            if step in chosen:
                found[step] = counts(lambda: run_call(**inputs), self.job.device)
            else:
                run_call(**inputs)

        calls = [{"step": step, **inputs} for step, inputs in enumerate(self.calls)]
        run(self.runner, counted, calls)
        return {name: asdict(found[step]) for step, name in chosen.items()}

    def memory(self) -> dict[str, Any]:
        """Bytes: of the weights, kept between steps, and at the peak of a trajectory (a CPU: of the process)."""
        if self.job.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            run(self.runner, self.call, self.calls)
            self._synchronize()
        held = self.runner.held_bytes() if self.runner.held_bytes else bytes_in(self.runner.held())
        if self.job.device == "cuda":
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"weights_bytes": self.weights, "held_bytes": held, "peak_bytes": peak}

    def _eager_flops(self) -> list[int]:
        from benchmarks.suite.counting import flops_of

        flops: list[int] = []
        run(
            self.runner,
            lambda **inputs: flops.append(flops_of(lambda: self.runner.model(**inputs), self.job.device)),
            self.calls,
        )
        return flops

    def _chosen(self) -> dict[int, str]:
        from benchmarks.suite.masks import computed

        mask = computed(self.job.steps, self.method.interval)
        others = [step for step in range(1, len(mask)) if mask[step - 1] and not mask[step] and step > 1]
        anchor = max(step for step in range(len(mask)) if mask[step])
        return {others[-1]: "other", others[-1] - 1: "anchor"} if others else {anchor: "anchor"}

    def _synchronize(self) -> None:
        if self.job.device == "cuda":
            torch.cuda.synchronize()

    def _mark(self) -> Any:
        if self.job.device != "cuda":
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end) / 1e3 if self.job.device == "cuda" else end - start)


def _redirect(log: str) -> None:
    """All output of the process, that of libraries included, goes to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)


def _stop_compile_workers() -> None:
    from torch._inductor.async_compile import shutdown_compile_workers

    shutdown_compile_workers()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
