"""Many generations at once on one model: threads and asyncio tasks, mixed plans, batches, guidance, cancellations.

Each generation that runs to its end must give, bit for bit, what it gives alone in a fresh process. All are run again
until nothing is compiled any more, to see what memory grows by then. Run with
``python -m benchmarks.stress``; it writes ``benchmarks/results/stress.json``.
"""

import argparse
import asyncio
import itertools
import json
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file, save_file

import soda_compile
from soda_compile.plans.actions import COMPUTE, FORECAST1, FORECAST2, REUSE
from soda_compile.runtime import generation
from soda_compile.runtime.statistics import recorded

RESULTS = Path(__file__).parent / "results" / "stress.json"
STEPS, BATCHES = (5, 8, 12), (1, 2)
ROW = (COMPUTE, COMPUTE, FORECAST1, COMPUTE, FORECAST2, REUSE)
CLASSES = 10
LIMIT = 64
"""Of recompilations. One function has all plans and batches; the setting is each thread's own. And where threads
evaluate Dynamo's guards at the same time, guards that hold may fail, and what is compiled already is compiled again."""


ROUNDS = 8
"""At most. Code is compiled in the first ones, for what threads meet first, and is some of what memory grows by."""


class Stopped(Exception):
    """What a generation raises in its middle."""


@dataclass(frozen=True)
class Request:
    """One generation, all of it drawn from its number.

    Attributes:
        number: Its number, the seed of its noise.
        steps: Number of steps.
        batch: Number of samples.
        guided: Whether each step has two denoiser calls.
        stops_at: The step at which it raises or is cancelled; None if it runs to its end.
    """

    number: int
    steps: int
    batch: int
    guided: bool
    stops_at: int | None

    @classmethod
    def drawn(cls, number: int) -> "Request":
        """Return the request of a number."""
        draw = random.Random(number)
        steps = draw.choice(STEPS)
        stops_at = draw.randrange(steps) if draw.random() < 0.2 else None
        return cls(number, steps, draw.choice(BATCHES), draw.random() < 0.5, stops_at)


class Denoiser:
    """A small DiT, compiled by a plan for each number of steps."""

    def __init__(self, lowering: str) -> None:
        torch.manual_seed(0)
        size = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "sample_size": 8, "patch_size": 2}
        self.model = diffusers.DiTTransformer2DModel(
            in_channels=4, out_channels=4, num_embeds_ada_norm=CLASSES, norm_num_groups=4, **size
        ).eval().requires_grad_(False)  # fmt: skip
        for parameter in self.model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        regions = soda_compile.inspect(self.model, **self.inputs(torch.zeros(1, 4, 8, 8), 0.0)).region_names
        self.compiled = {steps: self._compiled(regions, steps, lowering) for steps in STEPS}

    def _compiled(self, regions: tuple[str, ...], steps: int, lowering: str) -> Callable[..., Any]:
        row = tuple(itertools.islice(itertools.cycle(ROW), steps))
        options = {"plan": soda_compile.Plan("", regions, (row,) * len(regions)), "lowering": lowering}
        return torch.compile(self.model, backend="soda", options=options, dynamic=False, fullgraph=True)  # type: ignore[no-any-return]

    def inputs(self, x: torch.Tensor, t: float, label: int = 0) -> dict[str, Any]:
        """Return the arguments of a call."""
        labels, times = torch.full((len(x),), label), torch.full((len(x),), t)
        return {"hidden_states": x, "timestep": times, "class_labels": labels, "return_dict": False}

    def sample(self, request: Request) -> Iterator[torch.Tensor]:
        """Yield the sample after each step, as a loop of one's own makes it."""
        x = torch.randn(request.batch, 4, 8, 8, generator=torch.Generator().manual_seed(request.number))
        compiled = self.compiled[request.steps]
        with soda_compile.trajectory(self.model, manual=True) as opened:
            for step in range(request.steps):
                with torch.no_grad():
                    out = compiled(**self.inputs(x, 1000.0 * (1 - step / request.steps), request.number % CLASSES))[0]
                    if request.guided:
                        other = compiled(**self.inputs(x, 1000.0 * (1 - step / request.steps), CLASSES))[0]
                        out = other + 1.5 * (out - other)
                opened.advance()
                x = x - 0.1 * out
                yield x


@dataclass
class Outcome:
    """What came of all requests.

    Attributes:
        samples: By number of the request, of those that ran to their end.
        errors: What was raised other than on purpose.
        memory_mb: Resident memory, each time a request ended.
    """

    samples: dict[int, torch.Tensor] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)

    def ended(self) -> None:
        """Note the memory."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory_mb.append(pages * 4096 / 1e6)

    @property
    def growth_mb(self) -> float:
        """Return what memory grew by over the last four fifths."""
        return round(self.memory_mb[-1] - self.memory_mb[len(self.memory_mb) // 5], 1)


def work(denoiser: Denoiser, requests: "queue.SimpleQueue[Request]", outcome: Outcome) -> None:
    """Run requests one after another, in a thread."""
    torch._dynamo.config.recompile_limit = LIMIT
    while not requests.empty():
        try:
            request = requests.get_nowait()
        except queue.Empty:
            return
        try:
            for step, x in enumerate(denoiser.sample(request)):  # noqa: B007 - the last one counts
                if step == request.stops_at:
                    raise Stopped
            outcome.samples[request.number] = x
        except Stopped:
            pass
        except Exception as error:
            outcome.errors.append(f"{request}: {type(error).__name__}: {error}")
        outcome.ended()


async def serve(denoiser: Denoiser, requests: "queue.SimpleQueue[Request]", outcome: Outcome, tasks: int) -> None:
    """Run requests in tasks that take turns at every step; those that stop are cancelled."""

    async def one(request: Request) -> torch.Tensor:
        for x in denoiser.sample(request):  # noqa: B007 - the last one counts
            await asyncio.sleep(0)
        return x

    async def many() -> None:
        while not requests.empty():
            try:
                request = requests.get_nowait()
            except queue.Empty:
                return
            task = asyncio.ensure_future(one(request))
            for _ in range(request.stops_at or 0):
                await asyncio.sleep(0)
            if request.stops_at is not None:
                task.cancel()
            try:
                outcome.samples[request.number] = await task
            except asyncio.CancelledError:
                pass
            except Exception as error:
                outcome.errors.append(f"{request}: {type(error).__name__}: {error}")
            outcome.ended()

    await asyncio.gather(*(many() for _ in range(tasks)))


class TimedLock:
    """A lock that notes how long threads wait for it."""

    waited = 0.0

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        started = time.perf_counter()
        self._lock.acquire()
        TimedLock.waited += time.perf_counter() - started

    def __exit__(self, *error: object) -> None:
        self._lock.release()


def time_locks(denoiser: Denoiser) -> None:
    """Time the locks that calls take: of generations, statistics and memory."""
    generation.threading = types.SimpleNamespace(Lock=TimedLock)  # type: ignore[assignment]
    for each in recorded(denoiser.model.parameters()):
        each._lock, each.budget._lock = TimedLock(), TimedLock()  # type: ignore[assignment]


def together(denoiser: Denoiser, count: int, threads: int, tasks: int) -> Outcome:
    """Run requests in threads and in tasks at the same time."""
    outcome = Outcome()
    queues: list[queue.SimpleQueue[Request]] = [queue.SimpleQueue(), queue.SimpleQueue()]
    for number in range(count):
        queues[number % 2].put(Request.drawn(number))
    workers = [threading.Thread(target=work, args=(denoiser, queues[0], outcome)) for _ in range(threads)]
    for worker in workers:
        worker.start()
    asyncio.run(serve(denoiser, queues[1], outcome, tasks))
    for worker in workers:
        worker.join()
    return outcome


def alone(denoiser: Denoiser, count: int) -> dict[int, torch.Tensor]:
    """Run the requests that go to their end, one after another."""
    requests = [Request.drawn(number) for number in range(count)]
    return {each.number: list(denoiser.sample(each))[-1] for each in requests if each.stops_at is None}


def main() -> None:
    """Run the stress and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=500)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--lowering", default="inductor", choices=("inductor", "eager"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--alone", type=Path, help="only run the requests one after another, and write them here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums are split by threads, and are to be equal bit for bit
    torch._dynamo.config.recompile_limit = LIMIT
    if arguments.alone is not None:
        samples = alone(Denoiser(arguments.lowering), arguments.generations)
        save_file({str(number): value.contiguous() for number, value in samples.items()}, arguments.alone)
        return
    with tempfile.TemporaryDirectory() as folder:
        expected = _in_a_fresh_process(Path(folder) / "alone.safetensors", arguments)
    denoiser = Denoiser(arguments.lowering)
    alone(denoiser, 24)  # compiles all plans and batches
    time_locks(denoiser)
    TimedLock.waited, started = 0.0, time.perf_counter()
    outcome = together(denoiser, arguments.generations, arguments.threads, arguments.tasks)
    seconds = time.perf_counter() - started
    report = judge(outcome, expected, denoiser)
    waited = TimedLock.waited
    report["rounds"] = again(denoiser, arguments)
    report |= {
        "generations": arguments.generations, "threads": arguments.threads, "tasks": arguments.tasks,
        "lowering": arguments.lowering, "seconds": round(seconds, 1), "torch": torch.__version__,
        "waited_for_locks": round(waited / (seconds * (arguments.threads + 1)), 5),
        "command": f"python -m benchmarks.stress {' '.join(sys.argv[1:])}".strip(),
    }  # fmt: skip
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    if report["differ"] or report["errors"] or report["missing"]:
        raise SystemExit(1)


def again(denoiser: Denoiser, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Run all requests again until nothing is compiled; return what memory grew by in each round."""
    rounds: list[dict[str, float]] = []
    while len(rounds) < ROUNDS and (not rounds or rounds[-1]["compilations"]):
        before = _compilations(denoiser)
        outcome = together(denoiser, arguments.generations, arguments.threads, arguments.tasks)
        rounds.append({"compilations": _compilations(denoiser) - before, "growth_mb_after_a_fifth": outcome.growth_mb})
    return rounds


def judge(outcome: Outcome, expected: dict[int, torch.Tensor], denoiser: Denoiser) -> dict[str, Any]:
    """Return how the samples compare with those of the same requests alone, and what stayed behind."""
    equal = Counter(torch.equal(value, expected[number]) for number, value in outcome.samples.items())
    return {
        "equal": equal[True],
        "differ": equal[False],
        "missing": len(expected.keys() - outcome.samples.keys()),
        "stopped": len(outcome.memory_mb) - len(outcome.samples) - len(outcome.errors),
        "errors": outcome.errors[:5],
        "growth_mb_after_a_fifth": outcome.growth_mb,
        "slot_bytes_left": soda_compile.stats(denoiser.model)["model"]["slot_bytes"],
        "misses": soda_compile.stats(denoiser.model)["model"]["misses"],
        "compilations": _compilations(denoiser),
    }


def _compilations(denoiser: Denoiser) -> int:
    """Return how often something was compiled so far: some of what the memory grows by is code."""
    count: int = soda_compile.stats(denoiser.model)["model"]["compilations"]
    return count


def _in_a_fresh_process(path: Path, arguments: argparse.Namespace) -> dict[int, torch.Tensor]:
    command = [sys.executable, "-m", "benchmarks.stress", "--alone", str(path)]
    command += ["--generations", str(arguments.generations), "--lowering", arguments.lowering]
    subprocess.run(command, check=True)
    return {int(number): value for number, value in load_file(path).items()}


if __name__ == "__main__":
    main()
